/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A connection whose writes may be compressed.  See packed.h.
 *
 * An unpacker is needed for as long as a write takes, so there are as many as nbdkit works on
 * requests of one connection (16, if it was not told otherwise).  They are kept until the
 * connection ends.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "nbd-plugin/receive/packed.h"

struct idle {
  struct idle *next;
  struct unpacker *unpacker;
};

struct packed {
  _Atomic bool broken;
  _Atomic uint64_t disk_size; /* bytes; packed_size() is called before any request */
  pthread_mutex_t lock;
  struct idle *idle; /* under the lock */
};

struct packed *
packed_new (void)
{
  struct packed *p = calloc (1, sizeof *p);

  if (p != NULL)
    pthread_mutex_init (&p->lock, NULL);
  return p;
}

void
packed_free (struct packed *p)
{
  if (p == NULL)
    return;
  while (p->idle != NULL) {
    struct idle *i = p->idle;
    p->idle = i->next;
    unpacker_free (i->unpacker);
    free (i);
  }
  pthread_mutex_destroy (&p->lock);
  free (p);
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
borrow (struct packed *p)
{
  pthread_mutex_lock (&p->lock);
  struct idle *i = p->idle;
  if (i != NULL)
    p->idle = i->next;
  pthread_mutex_unlock (&p->lock);
  if (i != NULL)
    return i;
  i = calloc (1, sizeof *i);
  if (i != NULL)
    i->unpacker = unpacker_new ();
  if (i != NULL && i->unpacker != NULL)
    return i;
  free (i);
  return NULL;
}

static void
give_back (struct packed *p, struct idle *i)
{
  pthread_mutex_lock (&p->lock);
  i->next = p->idle;
  p->idle = i;
  pthread_mutex_unlock (&p->lock);
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
  struct idle *i = borrow (p);

  if (i == NULL) {
    nbdkit_error ("there is not enough memory to unpack a compressed write");
    *err = ENOMEM;
    return -1;
  }
  int r = write_content (p, i, next, pack, count, offset - PACK_OFFSET, flags, err);
  give_back (p, i);
  return r;
}
