/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint verify: is everything recorded that was changed since a checkpoint?
 *
 * The disk is compared with a copy of it as it was at the checkpoint.  A block that differs, and
 * that the recording does not have, was missed by the tracking.  A guest may write meanwhile: a
 * write is recorded before it changes the disk, and the recording is asked for after the disk was
 * read, so what was seen to differ is recorded by then.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/checkpoint/checkpoint.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/verify-meter.h"
#include "cmd/worker.h"
#include "mirror/verify/verify.h"

#define TOLD_MAX 100 /* ranges that are printed */
#define MARK_BYTES (4u << 20)

struct found {
  uint64_t *offsets; /* of pieces of VERIFY_UNIT bytes */
  size_t nr;
  bool no_memory;
  struct verify_meter meter;
};

static void
on_difference (void *opaque, uint64_t offset, uint64_t length)
{
  struct found *f = opaque;

  (void)length;
  if (f->nr % 4096 == 0) {
    uint64_t *more = realloc (f->offsets, (f->nr + 4096) * sizeof *more);
    if (more == NULL) {
      f->no_memory = true;
      return;
    }
    f->offsets = more;
  }
  f->offsets[f->nr++] = offset;
}

static void
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  struct found *f = opaque;

  verify_meter_show (&f->meter, done, size);
}

/* How the server of CONTROL is read; for text_free().  NULL after a message. */
static char *
source_of (const char *control)
{
  struct control_client *c = query_connect (control);
  json_t *status = NULL;
  char *uri = NULL;

  if (c != NULL && query_call (c, control, "query-mirror", NULL, &status, NULL) == 0) {
    const char *text = status_text (status, "uri");
    if (text != NULL)
      uri = text_copy (text);
    else
      cmd_say ("%s: the server does not say how to reach its export (mirror-uri=)", control);
  }
  json_decref (status);
  control_client_free (c);
  return uri;
}

static int
compare (const char *source, const struct checkpoint_scrub *x, struct found *f)
{
  char *a[] = { (char *)source, NULL };
  struct verify_options o = { .a = a,
                              .nr_a = 1,
                              .b = x->copy,
                              .nr_b = x->nr_copy,
                              .bytes = x->padded,
                              .padded = x->padded,
                              .signal = x->signal,
                              .opaque = f,
                              .progress = on_progress,
                              .differs = on_difference };
  struct verify_report report;
  CLEANUP_TEXT char *error = NULL;

  verify_meter_begin (&f->meter, x->show);
  enum verify_result result = verify_run (&o, &report, &error);
  verify_meter_end (&f->meter);
  if (result == VERIFY_CANCELLED)
    return EXIT_CANCELLED;
  if (result == VERIFY_FAILED || f->no_memory) {
    cmd_say ("%s", result == VERIFY_FAILED ? error : "out of memory");
    return EXIT_ERROR;
  }
  return EXIT_DONE;
}

static int
by_offset (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

  return (x > y) - (x < y);
}

static bool
is_recorded (const struct map *m, uint64_t offset)
{
  uint64_t block = offset / m->block_size;

  return offset < m->size && (m->bits[block / 64] >> (block % 64) & 1) != 0;
}

/* Count them; those that are not in M, joined: an array of objects. */
static json_t *
missed (struct found *f, const struct map *m, struct checkpoint_scrub *x)
{
  json_t *list = json_array (), *last = NULL;
  uint64_t end = UINT64_MAX;

  x->different_bytes = x->missed_bytes = 0;
  if (f->nr > 0)
    qsort (f->offsets, f->nr, sizeof f->offsets[0], by_offset);
  for (size_t i = 0; i < f->nr; i++) {
    uint64_t offset = f->offsets[i], left = m->size - offset;
    uint64_t length = left < VERIFY_UNIT ? left : VERIFY_UNIT;
    x->different_bytes += length;
    if (is_recorded (m, offset))
      continue;
    x->missed_bytes += length;
    if (offset == end) {
      json_int_t had = json_integer_value (json_object_get (last, "length"));
      json_object_set_new (last, "length", json_integer (had + (json_int_t)length));
    } else {
      last = json_pack ("{s:I, s:I}", "offset", (json_int_t)offset, "length", (json_int_t)length);
      json_array_append_new (list, last);
    }
    end = offset + length;
  }
  return list;
}

/* ---- setting dirty what was missed ---- */

/* LENGTH bytes at OFFSET, in pieces that a guest could write as well. */
static int
mark_range (struct control_client *c, const char *control, uint64_t offset, uint64_t length)
{
  while (length > 0) {
    uint64_t n = length < MARK_BYTES ? length : MARK_BYTES;
    json_t *args = json_pack ("{s:I, s:I}", "offset", (json_int_t)offset, "length", (json_int_t)n);
    if (query_call (c, control, "mirror-mark", args, NULL, NULL) == -1)
      return -1;
    offset += n;
    length -= n;
  }
  return 0;
}

static int
mark (const char *control, const json_t *missed)
{
  struct control_client *c = json_array_size (missed) > 0 ? query_connect (control) : NULL;
  const json_t *o;
  size_t i;
  int r = c != NULL || json_array_size (missed) == 0 ? 0 : -1;

  json_array_foreach (missed, i, o)
  {
    if (r == 0)
      r = mark_range (c, control, (uint64_t)json_integer_value (json_object_get (o, "offset")),
                      (uint64_t)json_integer_value (json_object_get (o, "length")));
  }
  control_client_free (c);
  return r == 0 ? EXIT_DONE : EXIT_ERROR;
}

/* ---------------------------------------------------------------------------------------------- */

void
checkpoint_print_missed (const json_t *missed)
{
  const json_t *o;
  size_t i;

  json_array_foreach (missed, i, o)
  {
    if (i == TOLD_MAX) {
      printf ("... and %zu more ranges\n", json_array_size (missed) - i);
      break;
    }
    printf ("not recorded: %lld bytes at offset %lld\n",
            (long long)json_integer_value (json_object_get (o, "length")),
            (long long)json_integer_value (json_object_get (o, "offset")));
  }
}

int
checkpoint_scrub (struct checkpoint_scrub *x)
{
  struct found f = { .nr = 0 };
  CLEANUP_TEXT char *uri = NULL;
  struct map m;

  bool live = query_is_control (x->place);
  x->missed = NULL;
  /* Before anything is read: is there such a checkpoint, and is it to be believed? */
  int status = checkpoint_map (&m, x->place, x->disk, x->name);
  free (m.bits);
  if (status != EXIT_DONE)
    return status;
  if (live && (uri = source_of (x->place)) == NULL)
    return EXIT_ERROR;
  status = compare (live ? uri : x->disk, x, &f);
  m.bits = NULL;
  if (status == EXIT_DONE)
    status = checkpoint_map (&m, x->place, x->disk, x->name);
  if (status == EXIT_DONE) {
    x->missed = missed (&f, &m, x);
    if (x->mark)
      status = mark (x->place, x->missed);
  }
  free (m.bits);
  free (f.offsets);
  return status;
}

static void
print (const struct checkpoint_scrub *x)
{
  checkpoint_print_missed (x->missed);
  if (x->missed_bytes == 0)
    printf ("good: %" PRIu64 " bytes differ, and all of them are recorded since '%s'\n",
            x->different_bytes, x->name);
  else
    printf ("missed: %" PRIu64 " of %" PRIu64 " bytes that differ are not recorded since '%s'%s\n",
            x->missed_bytes, x->different_bytes, x->name, x->mark ? "; they are now" : "");
}

int
checkpoint_verify (const char *place, const char *disk, const char *name, const char *copy,
                   bool mark_it, bool json)
{
  char *words[] = { (char *)copy, NULL };
  struct checkpoint_scrub x = { .place = place,
                                .disk = disk,
                                .name = name,
                                .copy = words,
                                .nr_copy = 1,
                                .mark = mark_it,
                                .show = !json };

  if (!query_is_control (place) && disk == NULL)
    return cmd_usage_error ("with a state file, verify needs --disk FILE");
  if (!query_is_control (place) && mark_it)
    return cmd_usage_error ("--mark: %s is not a control socket: only a running server can mark",
                            place);
  if (worker_signals (&x.signal) == -1)
    return EXIT_ERROR;
  int status = checkpoint_scrub (&x);
  if (status == EXIT_DONE && json) {
    json_t *o = json_pack ("{s:s, s:I, s:I, s:O}", "checkpoint", name, "different-bytes",
                           (json_int_t)x.different_bytes, "missed-bytes",
                           (json_int_t)x.missed_bytes, "missed", x.missed);
    json_dumpf (o, stdout, JSON_INDENT (2));
    putchar ('\n');
    json_decref (o);
  } else if (status == EXIT_DONE)
    print (&x);
  json_decref (x.missed);
  return status == EXIT_DONE && x.missed_bytes > 0 ? EXIT_DIFFERENT : status;
}
