/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A source that cannot be read.  See source-errors.h.
 */

#include "config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/source-errors.h"

#define NAMED 8 /* so many places stand in a message, the others in the report */
/* How much later than asked a job may give up, to tell the bad blocks from the good ones. */
#define SLACK_NS ((uint64_t)(150 * NS_PER_MS))

static int
by_offset (const void *a, const void *b)
{
  const struct unreadable_run *x = a, *y = b;
  return x->first < y->first ? -1 : x->first > y->first;
}

/* Where single blocks are known to be bad, leave out the runs in which bad blocks are looked for
 * still. */
static void
keep_the_certain (struct unreadable *u)
{
  unsigned n = 0;

  for (unsigned i = 0; i < u->nr; i++)
    if (u->runs[i].w.ns > 0)
      u->runs[n++] = u->runs[i];
  if (n > 0)
    u->nr = n;
}

bool
source_errors_look (struct source_errors *s, struct engine *e)
{
  bool before = s->any;
  const struct region_geometry *geo = &e->region->geo;

  s->any = engine_unreadable (e, &s->u);
  s->bytes = 0;
  if (s->any) {
    qsort (s->u.runs, s->u.nr, sizeof s->u.runs[0], by_offset);
    keep_the_certain (&s->u);
    for (unsigned i = 0; i < s->u.nr; i++)
      s->bytes += region_bytes (geo, s->u.runs[i].first, s->u.runs[i].count);
    s->offset = s->u.runs[0].first << geo->block_shift;
  }
  return s->any != before;
}

bool
source_errors_give_up (const struct source_errors *s, uint64_t give_up_ns, uint64_t now_ns)
{
  if (!s->any || give_up_ns == UINT64_MAX || now_ns - s->u.since_ns < give_up_ns)
    return false;
  for (unsigned i = 0; i < s->u.nr; i++)
    if (s->u.runs[i].w.ns > 0) /* it failed by itself */
      return true;
  return s->u.source.ns > 0 || now_ns - s->u.since_ns - give_up_ns >= SLACK_NS;
}

uint64_t
source_errors_due_ns (const struct source_errors *s, uint64_t give_up_ns)
{
  return s->any && give_up_ns != UINT64_MAX ? s->u.since_ns + give_up_ns : UINT64_MAX;
}

char *
source_errors_text (const struct source_errors *s, const struct engine *e)
{
  const struct region_geometry *geo = &e->region->geo;
  char *text = text_printf ("%s: cannot read", endpoint_name (e->source));

  for (unsigned i = 0; i < s->u.nr && i < NAMED; i++) {
    const struct unreadable_run *r = &s->u.runs[i];
    char *longer
        = text_printf ("%s%s %" PRIu64 " bytes at offset %" PRIu64, text, i ? "," : "",
                       region_bytes (geo, r->first, r->count), r->first << geo->block_shift);
    text_free (text);
    text = longer;
  }
  char *whole = s->u.nr > NAMED ? text_printf ("%s and in %u more places: %s", text,
                                               s->u.nr - NAMED, strerror (s->u.runs[0].err))
                                : text_printf ("%s: %s", text, strerror (s->u.runs[0].err));
  text_free (text);
  return whole;
}

json_t *
source_errors_json (const struct source_errors *s, const struct engine *e)
{
  const struct region_geometry *geo = &e->region->geo;
  json_t *places = json_array ();

  for (unsigned i = 0; s->any && i < s->u.nr; i++) {
    const struct unreadable_run *r = &s->u.runs[i];
    json_array_append_new (places, json_pack ("{s:I, s:I}", "offset",
                                              (json_int_t)(r->first << geo->block_shift), "length",
                                              (json_int_t)region_bytes (geo, r->first, r->count)));
  }
  return places;
}
