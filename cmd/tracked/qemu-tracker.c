/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See qemu-tracker.h.
 */

#include "config.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/same-image.h"
#include "cmd/tracked/qemu-tracker.h"

/* A guest that is held once more is let go on within this time: a connection and a call. */
#define AGAIN_MS 60000

static const char *
text_of (const json_t *o, const char *key)
{
  const char *text = json_string_value (json_object_get (o, key));
  return text != NULL ? text : "";
}

/* ---- nobody else may write ------------------------------------------------------------------ */

/* A job in QEMU may write to the node, or give the guest another one, while the guest is stopped.
 */
static int
check_jobs (struct qemu_tracker *t, bool *refused, char **error)
{
  json_t *list = NULL, *o;
  int r = 0;
  size_t i;

  if (machine_call (&t->vm, "query-jobs", NULL, &list, NULL, error) == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    const char *status = text_of (o, "status"), *type = text_of (o, "type");
    if (r == -1 || strcmp (status, "concluded") == 0 || strcmp (status, "null") == 0)
      continue;
    *refused = true;
    r = text_error (error, "a job of QEMU's runs (%s, %s), and may write to %s", text_of (o, "id"),
                    type, t->node);
  }
  json_decref (list);
  return r;
}

static int
check_exports (struct qemu_tracker *t, bool *refused, char **error)
{
  json_t *list = NULL, *o;
  int r = 0;
  size_t i;

  if (machine_call (&t->vm, "query-block-exports", NULL, &list, NULL, error) == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    if (r == -1 || strcmp (text_of (o, "node-name"), t->node) != 0
        || bitmaps_is_ours (text_of (o, "id")))
      continue;
    *refused = true;
    r = text_error (error, "QEMU exports %s (%s), and a client may write to it", t->node,
                    text_of (o, "id"));
  }
  json_decref (list);
  return r;
}

/* Does the device still use this node, and not an overlay on it, whose changes nobody would tell?
 */
static int
check_device (struct qemu_tracker *t, char **error)
{
  struct guest_disk d;

  int r = guest_disk_find (&t->vm, t->device, t->backend, &d, error);
  if (r == -1)
    return -1;
  if (r == 0)
    return text_error (error, "the guest has lost the disk with the node %s", t->node);
  r = strcmp (d.node, t->node) == 0
          ? 0
          : text_error (error, "the guest's disk has another node now: %s instead of %s", d.node,
                        t->node);
  guest_disk_free (&d);
  return r;
}

/* ---- the beginning and the end -------------------------------------------------------------- */

static int
look_at_disk (struct qemu_tracker *t, bool *refused, char **error)
{
  const struct disk_choice choice = { .node = t->node };
  struct guest_disk d;

  if (guest_disk_choose (&t->vm, &choice, &d, refused, error) == -1)
    return -1;
  t->device = text_copy (d.device);
  t->backend = text_copy (d.backend);
  json_t *size = json_object_get (json_object_get (d.inserted, "image"), "virtual-size");
  t->size = (uint64_t)json_integer_value (size);
  guest_disk_free (&d);
  if (check_jobs (t, refused, error) == -1)
    return -1;
  return check_exports (t, refused, error);
}

static char *
make_uri (const struct bitmaps *b)
{
  char *path = malloc (3 * strlen (b->socket) + 1), *to = path;
  static const char digits[] = "0123456789ABCDEF";

  if (path == NULL)
    abort ();
  for (const unsigned char *c = (const unsigned char *)b->socket; *c != '\0'; c++)
    if (isalnum (*c) || strchr ("/-._", *c) != NULL)
      *to++ = (char)*c;
    else {
      *to++ = '%';
      *to++ = digits[*c >> 4];
      *to++ = digits[*c & 15];
    }
  *to = '\0';
  char *uri = text_printf ("nbd+unix:///%s?socket=%s", b->data, path);
  free (path);
  return uri;
}

int
qemu_tracker_begin (struct qemu_tracker *t, const char *qmp, const char *node, const char *dest,
                    bool *refused, char **error)
{
  *t = (struct qemu_tracker){ .node = node, .guardian = { .fd = -1 } };
  t->vm = (struct machine){ .name = "the guest's", .path = qmp, .journal = &t->quiet };
  *refused = false;
  bitmaps_init (&t->bitmaps, qmp, node);
  if (monitor_open (&t->vm, false, refused, error) == -1 || look_at_disk (t, refused, error) == -1)
    return -1;
  if (image_is_open_in (monitor_process (&t->vm), dest) == 1) {
    *refused = true;
    return text_error (error, "%s is open in the guest's QEMU, so it is no destination", dest);
  }
  /* QEMU serves one client of a monitor at a time, and the guardian must not keep ours. */
  machine_close (&t->vm);
  if (guardian_start (&t->guardian, qmp, &t->bitmaps, error) == -1)
    return -1;
  /* First of all, so that a job that runs through another monitor is not disturbed. */
  if (bitmaps_start_server (&t->bitmaps, &t->vm, refused, error) == -1)
    return -1;
  t->made = true;
  if (bitmaps_remove (&t->bitmaps, &t->vm, true, error) == -1)
    return -1;
  t->uri = make_uri (&t->bitmaps);
  int r = bitmaps_export (&t->bitmaps, &t->vm, refused, error);
  machine_close (&t->vm);
  return r;
}

int
qemu_tracker_end (struct qemu_tracker *t, char **error)
{
  int r = t->made && !machine_is_dead (&t->vm) ? bitmaps_remove (&t->bitmaps, &t->vm, false, error)
                                               : 0;

  machine_free (&t->vm);
  guardian_end (&t->guardian);
  text_free (t->bitmaps.socket);
  text_free (t->device);
  text_free (t->backend);
  text_free (t->uri);
  return r;
}

/* ---- the tracker's functions ------------------------------------------------------------------
 *
 * QEMU serves one client of a monitor at a time.  So each of these ends with the connection, and
 * others (the workers of other disks, `migrate`, the user) have their turn.
 */

static int
start (void *opaque, uint64_t size, uint32_t block_size, char **error)
{
  struct qemu_tracker *t = opaque;

  if (size != t->size)
    return text_error (error, "the disk of %s has another size now", t->node);
  int r = bitmaps_start (&t->bitmaps, &t->vm, block_size, error);
  machine_close (&t->vm);
  return r;
}

static int
take (void *opaque, tracker_mark *mark, void *region, char **error)
{
  struct qemu_tracker *t = opaque;

  int r = bitmaps_turn (&t->bitmaps, &t->vm, t->size, mark, region, error);
  machine_close (&t->vm);
  return r;
}

static int
query_running (struct qemu_tracker *t, bool *running, char **error)
{
  json_t *ret = NULL;

  if (machine_call (&t->vm, "query-status", NULL, &ret, NULL, error) == -1)
    return -1;
  *running = json_is_true (json_object_get (ret, "running"));
  json_decref (ret);
  return 0;
}

static int
stop_guest (struct qemu_tracker *t, const struct tracker_hold *h, char **error)
{
  bool running;

  if (query_running (t, &running, error) == -1)
    return -1;
  if (running && h->stopped)
    return text_error (error, "the guest runs, which was said to be stopped");
  if (guardian_hold (&t->guardian, h, !running, error) == -1)
    return -1;
  t->watched = true;
  t->stopped = running;
  return running ? machine_call (&t->vm, "stop", NULL, NULL, NULL, error) : 0;
}

static int
hold (void *opaque, const struct tracker_hold *h, char **error)
{
  struct qemu_tracker *t = opaque;

  int r = stop_guest (t, h, error);
  machine_close (&t->vm);
  return r;
}

static int
release (void *opaque, char **error)
{
  struct qemu_tracker *t = opaque;

  if (t->stopped && !t->watched) {
    /* A commit that failed: the guardian was told to leave the guest stopped. */
    const struct tracker_hold again = { .lease_ms = AGAIN_MS };
    t->watched = guardian_hold (&t->guardian, &again, false, error) == 0;
    if (!t->watched) {
      text_free (*error);
      *error = NULL;
    }
  }
  if (t->stopped) {
    /* If this fails the guardian tries on, since it was not told. */
    int r = machine_call (&t->vm, "cont", NULL, NULL, NULL, error);
    machine_close (&t->vm);
    if (r == -1)
      return -1;
  }
  t->stopped = false;
  if (!t->watched)
    return 0;
  t->watched = false;
  return guardian_release (&t->guardian, error);
}

/* Is the guest stopped, and has it been since the last take()? */
static int
check_stopped (struct qemu_tracker *t, char **error)
{
  bool running;
  uint64_t changed;

  if (query_running (t, &running, error) == -1
      || bitmaps_count (&t->bitmaps, &t->vm, &changed, error) == -1)
    return -1;
  return running || changed > 0 ? text_error (error, "somebody else has let the guest go on") : 0;
}

static int
check (void *opaque, char **error)
{
  struct qemu_tracker *t = opaque;
  bool refused;

  int r = check_device (t, error) == 0 && check_jobs (t, &refused, error) == 0
                  && check_exports (t, &refused, error) == 0
              ? check_stopped (t, error)
              : -1;
  machine_close (&t->vm);
  return r;
}

static int
commit (void *opaque, char **error)
{
  struct qemu_tracker *t = opaque;

  if (guardian_commit (&t->guardian, error) == -1)
    return -1;
  t->watched = false;
  int r = check_stopped (t, error);
  machine_close (&t->vm);
  /* A QEMU that has ended runs no guest. */
  if (r == -1 && machine_is_dead (&t->vm)) {
    text_free (*error);
    *error = NULL;
    r = 0;
  }
  if (r == 0)
    t->stopped = false; /* it is to stay so; after an error release() lets it go on */
  return r;
}

struct tracker
qemu_tracker_functions (struct qemu_tracker *t)
{
  return (struct tracker){
    .opaque = t,
    .start = start,
    .take = take,
    .hold = hold,
    .check = check,
    .release = release,
    .commit = commit,
  };
}
