/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Walking along two disks side by side.  See walk.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>

#include "base/text.h"
#include "mirror/verify/walk.h"

#define MAX_STATUS (UINT64_C (1) << 30) /* asked for at once, bytes of the disk */

bool
walk_goes_on (const struct walk *w)
{
  return w->next < w->size && w->error == 0 && w->differs == UINT64_MAX;
}

bool
walk_differs (struct walk *w, uint64_t offset, uint64_t length, uint64_t at)
{
  if (w->note != NULL) {
    w->note (w->opaque, offset, length);
    return true;
  }
  if (at < w->differs)
    w->differs = at;
  return false;
}

void
walk_error (struct walk *w, unsigned side, uint64_t offset, int error)
{
  if (w->error)
    return;
  w->error = error;
  w->error_side = side;
  w->error_offset = offset;
}

/* ---- block status ---------------------------------------------------------------------------- */

static void
on_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct walk_side *s = opaque;
  uint64_t length = 0;

  s->pending = false;
  s->zero = false;
  s->length = s->walk->unit; /* not known: look at some, then ask again */
  if (err)
    return;
  s->zero = x[0].zero;
  for (unsigned i = 0; i < nr && x[i].zero == s->zero; i++)
    length += x[i].length;
  s->length = length * s->scale;
}

/* How far from `next` on is it known whether side S is zero?  0: asked, wait. */
static uint64_t
known_length (struct walk *w, struct walk_side *s)
{
  uint64_t left = w->size - w->next;

  if (!s->can_status)
    return left;
  if (!s->pending && w->next >= s->offset && w->next < s->offset + s->length)
    return s->offset + s->length - w->next;
  if (!s->pending && channel_room (s->ch) > 0) {
    uint64_t n = left < MAX_STATUS ? left : MAX_STATUS;
    s->offset = w->next;
    s->length = 0;
    s->pending
        = channel_status (s->ch, (n + s->scale - 1) / s->scale, w->next / s->scale, on_status, s)
          == 0;
    if (!s->pending)
      s->can_status = s->zero = false;
  }
  return 0;
}

uint64_t
walk_skip_zeroes (struct walk *w)
{
  const struct walk_side *x = &w->side[0], *y = &w->side[1];

  while (walk_goes_on (w)) {
    uint64_t left = w->size - w->next;
    uint64_t a = known_length (w, &w->side[0]), b = known_length (w, &w->side[1]);
    if (a == 0 || b == 0)
      return 0;
    uint64_t n = a < b ? a : b;
    if (n >= left)
      n = left;
    if (!(x->can_status && x->zero && y->can_status && y->zero))
      return n;
    if (n < left)
      n -= n % w->unit; /* next is a multiple of it */
    if (n == 0)
      return left < w->unit ? left : w->unit;
    w->next += n;
  }
  return 0;
}

/* ---- the walk -------------------------------------------------------------------------------- */

static int
turn (struct walk *w)
{
  struct pollfd fds[2 * CHANNEL_MAX_FDS];
  int timeout = 200;
  unsigned na = channel_pollfds (w->side[0].ch, fds, CHANNEL_MAX_FDS, &timeout);
  unsigned nb = channel_pollfds (w->side[1].ch, fds + na, CHANNEL_MAX_FDS, &timeout);

  if (poll (fds, na + nb, timeout) == -1 && errno != EINTR)
    return errno;
  if (channel_dispatch (w->side[0].ch, fds, na) == -1)
    return w->error_side = 0, ESHUTDOWN;
  if (channel_dispatch (w->side[1].ch, fds + na, nb) == -1)
    return w->error_side = 1, ESHUTDOWN;
  return 0;
}

enum verify_result
walk_all (struct walk *w, const struct verify_options *o, char **error)
{
  for (;;) {
    w->method->fill (w);
    bool idle = w->active == 0 && !w->side[0].pending && !w->side[1].pending;
    if (!walk_goes_on (w) && idle)
      break;
    if (idle)
      continue;
    int err = turn (w);
    if (err && w->error == 0)
      w->error = err;
    if (err)
      break;
    if (atomic_load (o->signal))
      return VERIFY_CANCELLED;
    if (o->progress)
      o->progress (o->opaque, w->next, w->size);
  }
  if (w->error) {
    const struct walk_side *s = &w->side[w->error_side];
    const char *why = channel_error (s->ch);
    text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (s->ep),
                w->error_offset, why ? why : strerror (w->error));
    return VERIFY_FAILED;
  }
  return w->differs == UINT64_MAX ? VERIFY_EQUAL : VERIFY_DIFFERENT;
}
