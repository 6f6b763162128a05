/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The changes of an image that a server has acknowledged and not yet made durable.  If the server
 * dies, they are repeated on the next one.
 *
 *   log_begin()         log_end (keep)             log_flushed()
 *   -----> under way ------------------> kept ---------------------> gone
 *              |    log_end (drop)
 *              +--------------------> gone
 *
 * The order of the kept changes is that in which they ended.  Two changes that overlap are never
 * under way together (log_collides()), so it is also the order in which the server applied them.
 * A flush makes all changes durable that had ended before it began: log_mark() is called before the
 * flush, and log_flushed() with that mark after its success.  What ended meanwhile stays.
 *
 * Plain data without I/O.  The caller has a lock; change_new() and change_free() need none.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_LOG_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRIM };

struct change {
  struct change *next;
  enum change_kind kind;
  uint32_t flags; /* with which it is repeated, as libnbd has them */
  uint32_t count; /* bytes */
  uint64_t offset;
  uint64_t number; /* of those that are kept */
  size_t size;     /* memory that it takes */
  unsigned char data[];
};

struct change_log {
  struct change *first, *last; /* kept */
  struct change *under_way;
  uint64_t number; /* of the last one kept */
  size_t size;     /* of all, those under way included */
};

/* A change with a copy of DATA, which may be NULL.  NULL if memory has run out. */
struct change *change_new (enum change_kind kind, uint64_t offset, uint32_t count, uint32_t flags,
                           const void *data);

/* Free a list of them. */
void change_free (struct change *first);

/* Does a change that is under way overlap this range?  Then the next one must wait for its end. */
bool log_collides (const struct change_log *log, uint64_t offset, uint32_t count);

/* Does a change that is kept overlap this range? */
bool log_overlaps (const struct change_log *log, uint64_t offset, uint32_t count);

/* May C begin, if all together may take LIMIT bytes?  One that is larger may begin alone. */
bool log_has_room (const struct change_log *log, const struct change *c, size_t limit);

/* The log owns C from now on. */
void log_begin (struct change_log *log, struct change *c);

/* C, which is under way, has ended.  If it is not kept, it is the caller's to free. */
void log_end (struct change_log *log, struct change *c, bool keep);

/* All that is kept now. */
uint64_t log_mark (const struct change_log *log);

/* What was kept at MARK is durable.  Returns these changes, for change_free(). */
struct change *log_flushed (struct change_log *log, uint64_t mark);

#endif
