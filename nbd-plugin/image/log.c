/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See log.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "nbd-plugin/image/log.h"

struct change *
change_new (enum change_kind kind, uint64_t offset, uint32_t count, uint32_t flags,
            const void *data)
{
  size_t size = sizeof (struct change) + (data != NULL ? count : 0);
  struct change *c = malloc (size);

  if (c == NULL)
    return NULL;
  *c = (struct change){
    .kind = kind, .flags = flags, .count = count, .offset = offset, .size = size
  };
  if (data != NULL)
    memcpy (c->data, data, count);
  return c;
}

void
change_free (struct change *first)
{
  while (first != NULL) {
    struct change *next = first->next;
    free (first);
    first = next;
  }
}

static bool
any_overlaps (const struct change *c, uint64_t offset, uint32_t count)
{
  while (c != NULL && (c->offset >= offset + count || offset >= c->offset + c->count))
    c = c->next;
  return c != NULL;
}

bool
log_collides (const struct change_log *log, uint64_t offset, uint32_t count)
{
  return any_overlaps (log->under_way, offset, count);
}

bool
log_overlaps (const struct change_log *log, uint64_t offset, uint32_t count)
{
  return any_overlaps (log->first, offset, count);
}

bool
log_has_room (const struct change_log *log, const struct change *c, size_t limit)
{
  return log->size == 0 || (c->size <= limit && log->size <= limit - c->size);
}

void
log_begin (struct change_log *log, struct change *c)
{
  c->next = log->under_way;
  log->under_way = c;
  log->size += c->size;
}

void
log_end (struct change_log *log, struct change *c, bool keep)
{
  struct change **at = &log->under_way;

  while (*at != c)
    at = &(*at)->next;
  *at = c->next;
  c->next = NULL;
  if (!keep) {
    log->size -= c->size;
    return;
  }
  c->number = ++log->number;
  if (log->last != NULL)
    log->last->next = c;
  else
    log->first = c;
  log->last = c;
}

uint64_t
log_mark (const struct change_log *log)
{
  return log->number;
}

struct change *
log_flushed (struct change_log *log, uint64_t mark)
{
  struct change *gone = log->first, *last = NULL;

  for (struct change *c = log->first; c != NULL && c->number <= mark; c = c->next) {
    log->size -= c->size;
    last = c;
  }
  if (last == NULL)
    return NULL;
  log->first = last->next;
  if (log->first == NULL)
    log->last = NULL;
  last->next = NULL;
  return gone;
}
