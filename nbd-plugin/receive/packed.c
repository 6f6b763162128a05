/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A connection whose writes may be compressed.  See packed.h.
 *
 * An unpacker is needed for as long as a write takes.  It holds up to PACK_MAX_CONTENT bytes, which
 * a client may ask for with a pack of 54.  So all connections share a limited number of them, and a
 * write waits for one until another write has ended.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "nbd-plugin/receive/packed.h"

#define UNPACKERS_MAX 64u /* what nbdkit works on of four connections */

struct idle {
  struct idle *next;
  struct unpacker *unpacker;
};

struct packed {
  _Atomic bool broken;
  _Atomic uint64_t disk_size; /* bytes; packed_size() is called before any request */
};

static struct {
  pthread_mutex_t lock; /* all below */
  pthread_cond_t freed;
  struct idle *idle;
  unsigned nr; /* idle and at work */
} unpackers = { .lock = PTHREAD_MUTEX_INITIALIZER, .freed = PTHREAD_COND_INITIALIZER };

struct packed *
packed_new (void)
{
  return calloc (1, sizeof (struct packed));
}

void
packed_free (struct packed *p)
{
  free (p);
}

void
packed_unload (void)
{
  while (unpackers.idle != NULL) {
    struct idle *i = unpackers.idle;
    unpackers.idle = i->next;
    unpacker_free (i->unpacker);
    free (i);
  }
}

int64_t
packed_size (struct packed *p, int64_t size)
{
  if ((uint64_t)size > INT64_MAX - PACK_OFFSET) {
    nbdkit_error ("the disk is too large for compressed writes");
    return -1;
  }
  atomic_store (&p->disk_size, (uint64_t)size);
  return (int64_t)(PACK_OFFSET + (uint64_t)size);
}

bool
packed_is_broken (struct packed *p)
{
  return atomic_load (&p->broken);
}

bool
packed_in_disk (struct packed *p, uint32_t count, uint64_t offset, int *err)
{
  uint64_t size = atomic_load (&p->disk_size);

  if (offset <= size && count <= size - offset)
    return true;
  nbdkit_error ("a request of %u bytes at %llu goes beyond the disk's end", count,
                (unsigned long long)offset);
  *err = EINVAL;
  return false;
}

/* ---- unpackers ---- */

static struct idle *
make_unpacker (void)
{
  struct idle *i = calloc (1, sizeof *i);

  if (i != NULL)
    i->unpacker = unpacker_new ();
  if (i != NULL && i->unpacker != NULL)
    return i;
  free (i);
  return NULL;
}

/* I, or NULL for one that could not be made, is nobody's any more. */
static void
give_back (struct idle *i)
{
  pthread_mutex_lock (&unpackers.lock);
  if (i != NULL) {
    i->next = unpackers.idle;
    unpackers.idle = i;
  } else
    unpackers.nr--;
  pthread_cond_signal (&unpackers.freed);
  pthread_mutex_unlock (&unpackers.lock);
}

static struct idle *
borrow (void)
{
  pthread_mutex_lock (&unpackers.lock);
  while (unpackers.idle == NULL && unpackers.nr == UNPACKERS_MAX)
    pthread_cond_wait (&unpackers.freed, &unpackers.lock);
  struct idle *i = unpackers.idle;
  if (i != NULL)
    unpackers.idle = i->next;
  else
    unpackers.nr++;
  pthread_mutex_unlock (&unpackers.lock);
  if (i == NULL && (i = make_unpacker ()) == NULL)
    give_back (NULL);
  return i;
}

/* ---- writing ---- */

static int
write_content (struct packed *p, struct idle *i, nbdkit_next *next, const void *pack,
               uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  const void *content;
  size_t length;
  const char *why = unpack (i->unpacker, pack, count, &content, &length);

  if (why != NULL) {
    if (!atomic_exchange (&p->broken, true))
      nbdkit_error ("a compressed write for offset %llu cannot be unpacked: %s; this connection is"
                    " given up",
                    (unsigned long long)offset, why);
    *err = ESHUTDOWN;
    return -1;
  }
  if (!packed_in_disk (p, (uint32_t)length, offset, err))
    return -1;
  return next->pwrite (next, content, (uint32_t)length, offset, flags, err);
}

int
packed_write (struct packed *p, nbdkit_next *next, const void *pack, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  struct idle *i = borrow ();

  if (i == NULL) {
    nbdkit_error ("there is not enough memory to unpack a compressed write");
    *err = ENOMEM;
    return -1;
  }
  int r = write_content (p, i, next, pack, count, offset - PACK_OFFSET, flags, err);
  give_back (i);
  return r;
}
