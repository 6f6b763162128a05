/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Slots: a copier has a few, and each of them carries one task of the engine through its steps,
 * from engine_next() to the task's end.  What the steps are depends on the kind of task, and each
 * kind has a file and a state machine of its own:
 *
 *   slot-data.h     copies data, and reads it back if it is in quarantine
 *   slot-zeroes.h   makes the destination zero where the source is
 *   slot-hints.h    asks for the source's block status
 *   slot-flush.h    flushes the destination
 *
 * This file has what they share: the slots themselves, the list of those that wait for room at the
 * destination, and what happens when the destination fails.  Everything here runs in the copier's
 * thread, most of it in completions of its channels; there is no lock.
 *
 * Whatever goes wrong at the destination ends the session.  The slot is then simply dropped,
 * because its claim is revoked together with all others (R5, R7).
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SLOT_H
#define NBDMIRROR_MIRROR_ENGINE_SLOT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "digest/hash.h"
#include "mirror/engine/task.h"
#include "mirror/engine/window.h"

/* The destination of one session, as its copiers see it.  Constant once they run, but for the
 * latencies and the flags, which any thread may set. */
struct target {
  struct endpoint *endpoint;
  bool have_flush;
  uint32_t min_block;
  struct endpoint *digests;       /* of its blocks, for the difference; NULL: it is read instead */
  struct digest_key key;          /* of these */
  struct window_lowest lowest[2]; /* latencies, shared by the copiers (window.h) */
  uint8_t *tail_pad; /* what the destination holds behind our end, up to its minimum block */
  uint32_t tail_pad_len;
  _Atomic bool draining;    /* start nothing new, and end when everything was answered */
  _Atomic bool stop;        /* end at once */
  _Atomic bool source_lost; /* it is over because of the source, not of the destination */
  _Atomic int refused_with; /* 0, or the errno of a request that failed as it would at each try */

  /* The session is over.  Takes a copy of WHY.  Any thread. */
  void (*fail) (void *opaque, const char *why);
  void *opaque;
};

/* difference.h */
enum difference_look {
  DIFFERENCE_NO_LOOK, /* all of the run is to be sent */
  DIFFERENCE_FIRST,   /* look before the source is read, which may turn out to be unnecessary */
  DIFFERENCE_BESIDE   /* look while the source is read.  It takes the slot's second buffer */
};

enum slot_data_state { DATA_ASKING, DATA_READING, DATA_PLACING, DATA_WRITING, DATA_READ_BACK };
enum slot_zeroes_state { ZEROES_CHECKING, ZEROES_COMPARING, ZEROES_READING, ZEROES_WRITING };

struct slot {
  struct slots *of;
  bool in_use;
  struct engine_task task;
  uint64_t offset, length; /* the task in bytes; 0 for a flush */
  uint8_t *buf;
  bool is_short;
  uint32_t size;   /* bytes that the slot is for */
  uint8_t *second; /* another buffer, lent for as long as the task lasts; NULL: none yet */

  union {
    struct slot_data { /* slot-data.c */
      enum slot_data_state state;
      bool read_back; /* it is in quarantine */
      enum difference_look look;
      unsigned reading;   /* requests that READING waits for */
      uint64_t look_pos;  /* relative: up to here the look has asked (difference.h) */
      uint64_t same_from; /* relative: from here to look_pos all is in a lower layer */
      bool look_failed;
      void (*looked) (struct slot *); /* what follows the look */
      uint64_t same;        /* a bit for each unit of slots.unit bytes: it need not be sent */
      uint64_t holes;       /* the same: zeroes in it may become a hole */
      uint64_t pos;         /* relative: up to here it is placed, sent, or read back */
      uint64_t skipped;     /* bytes that were not sent */
      unsigned outstanding; /* requests at the destination */
      uint64_t sent_ns;     /* when the first of them was sent, */
      double in_flight;     /* requests, with it (window.h), */
      uint64_t queued;      /* bytes in flight before it, */
      uint64_t written;     /* and counters.written_bytes */
      uint64_t data_bytes;  /* of the outstanding requests; zeroes do not count */
      int failure;          /* errno of the read; or of a write: send no more */
    } data;
    struct slot_zeroes { /* slot-zeroes.c; all are relative to offset */
      enum slot_zeroes_state state;
      uint64_t pos;       /* up to here it is done */
      uint64_t zero_end;  /* up to here the source is known to be zero */
      bool allocated;     /* these zeroes must not become a hole */
      bool unseen;        /* the first block is in a lower layer */
      bool sent;          /* the first block */
      uint64_t chunk;     /* bytes from pos on that the request under way is about */
      uint64_t read_end;  /* up to here the destination is compared by reading it */
      uint64_t write_end; /* up to here the destination must be written */
    } zeroes;
  };

  struct slot *next;              /* in the list of those that wait for room, or are free */
  void (*resume) (struct slot *); /* the step it waits for */
};

/* One copier's slots.  The channels are set by the copier.
 *
 * There are few long slots, for whole requests, and many short ones.  A later pass has scattered
 * blocks of a few KiB, and over a long line it takes hundreds of requests in flight to make use of
 * the line's bandwidth. */
struct slots {
  struct engine *engine;
  struct target *target;
  struct channel *source, *dest;
  struct channel *beside; /* to the base image, or to the destination's digests; or NULL */
  struct slot *slots;
  struct slot *free_long, *free_short; /* lists */
  uint32_t long_size, short_size;      /* what each is for; SHORT_SIZE 0: there are none */
  unsigned nr;                         /* slots */
  unsigned nr_active, nr_urgent;       /* slots in use; of these for urgent blocks */
  unsigned most_active;                /* since slots_rest() */
  struct slot *waiting;                /* slots with something to send and no room, oldest first */
  struct windows windows;
  struct window_load active; /* the slots in use, but those for urgent blocks */
  struct window_load sent;   /* of these, what the destination has been sent */
  uint8_t *buffers;
  size_t buffers_size;
  uint32_t unit; /* bytes: what is the same is left out in pieces of this size */
  uint8_t *seconds[ENGINE_MAX_SECONDS]; /* the free second buffers; each is as a long slot's */
  unsigned nr_seconds;
};

/* How a copier's memory is divided: into whole buffers, short ones and second ones. */
struct slots_division {
  unsigned nr_long, nr_short, nr_seconds;
};

/* The same of all NR_COPIERS copiers of a session, together: so many whole requests and short ones
 * are in flight at most.  The servers take requests of any size.  Pure. */
struct slots_division slots_of_session (unsigned nr_copiers, uint32_t block_size,
                                        enum engine_sync sync);

/* The size of the pieces in which the difference is left out (unit, below), in bytes. */
uint32_t slots_unit (const struct engine *e, const struct target *target);

/* Make the slots of one of NR_COPIERS copiers of TARGET.  0, or -1 with errno. */
int slots_init (struct slots *ss, struct engine *e, struct target *target, unsigned nr_copiers);
/* The channels are closed. */
void slots_destroy (struct slots *ss);
/* None will be used for a while: give their memory back, unless one is in use.  The few that a calm
 * guest's writes take now and then keep it. */
void slots_rest (struct slots *ss);

/* A free slot for LENGTH bytes (0: it needs no buffer).  NULL: there is none, and the caller has
 * asked engine_next() for more than it had room for. */
struct slot *slots_find_free (struct slots *ss, uint64_t length);
/* There is room at the destination again: the slots that have waited for it go on. */
void slots_resume (struct slots *ss);

/* SL begins with its task, which the caller has filled in. */
void slot_begin (struct slot *sl);
/* SL is free again. */
void slot_end (struct slot *sl);
/* Lend SL a second buffer, unless it has one.  The caller has seen that one is free. */
void slot_take_second (struct slot *sl);

/* Call RESUME (SL) once there is room at the destination. */
void slot_wait_for_room (struct slot *sl, void (*resume) (struct slot *));

/* The destination failed a request of SL with ERR (errno); WHAT it was.  The session is over, and
 * SL is free. */
void slot_dest_failed (struct slot *sl, const char *what, int err);

#endif
