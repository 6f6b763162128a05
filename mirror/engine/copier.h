/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A copier: one thread with an event loop, a channel to the source and one to the destination, and
 * a few slots, each of which carries one task of the engine through its steps (slot.c).
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_COPIER_H
#define NBDMIRROR_MIRROR_ENGINE_COPIER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mirror/engine/engine.h"
#include "mirror/engine/session.h"
#include "mirror/engine/window.h"

struct copier;

enum slot_state {
  SLOT_FREE,
  SLOT_READING,   /* data: read from the source is in flight */
  SLOT_WRITING,   /* data: pieces are being sent, or wait for room */
  SLOT_READBACK,  /* quarantine: reading back from the destination */
  SLOT_CHECKING,  /* zeroes: the source's block status was asked, after the claim */
  SLOT_COMPARING, /* zeroes: the destination's block status was asked */
  SLOT_ZEROING,   /* zeroes: a write is in flight or waits for room */
  SLOT_ASKING,    /* hints: block status in flight; nothing is claimed */
  SLOT_FLUSHING
};

struct slot {
  struct copier *c;
  enum slot_state state;
  struct engine_task task;
  bool verify;
  uint8_t *readback;       /* verify: of the copier's */
  uint64_t offset, length; /* the task in bytes */
  uint64_t pos;            /* bytes of it that are sent (data) or done (zeroes) */
  uint64_t zero_end;       /* zeroes: up to here (relative) the source is known to be zero */
  uint64_t write_end;      /* zeroes: up to here the destination must be written */
  unsigned outstanding;    /* requests at the destination */
  uint64_t sent_ns;        /* when the first of them was sent */
  int failure;             /* errno, once pos is UINT64_MAX: send no more */
  uint8_t *buf;
  struct slot *next; /* in the list of those that wait for room */
};

struct copier {
  struct engine *engine;
  struct session *session;
  unsigned index;
  struct channel *source, *dest;
  int wake_fd;
  pthread_t thread;
  unsigned nr_slots;
  struct slot *slots;
  unsigned nr_active, nr_urgent; /* slots in use; of these for urgent blocks */
  struct window window;
  bool at_once;     /* the source answered the last read at once, from the page cache */
  uint8_t *buffers; /* one of buffer_size for each slot, and a few for reading back */
  size_t buffer_size;
  uint8_t *readbacks[ENGINE_DEPTH / 4]; /* the free ones: so many more tasks may be read back */
  unsigned nr_readbacks;
  struct slot *waiting; /* slots with something to send and no room, oldest first */
};

/* Make the copier's slots and wake-up descriptor; its channels are set by the caller.  0 or -1 with
 * errno. */
int copier_init (struct copier *c, struct session *s, unsigned index);
/* Close the channels, free the slots.  The thread has ended, or was never started. */
void copier_destroy (struct copier *c);
/* The thread. */
void *copier_run (void *copier);
void copier_wake (struct copier *c);

/* ---- slot.c ---- */
/* Begin work WORK in free slot SL, its task already filled in. */
void slot_start (struct slot *sl, enum engine_work work);
/* There is room at the destination again: send on. */
void slot_send_waiting (struct copier *c);

#endif
