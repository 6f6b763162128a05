/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Opening a repository, and choosing a backup.  See repository.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup/names.h"
#include "base/clock.h"
#include "base/text.h"
#include "cmd/far/far.h"
#include "cmd/repository/repository.h"
#include "cmd/verify-meter.h"
#include "mirror/job/sync.h"
#include "mirror/verify/image-digest.h"

int
opened_open (struct opened *o, const char *path)
{
  char *error = NULL;

  memset (o, 0, sizeof *o);
  int status = far_check (path);
  if (status != EXIT_DONE)
    return status;
  if (store_open (&o->store, path, &error) == 0 && store_list (&o->store, &o->list, &error) == 0)
    return EXIT_DONE;
  cmd_say ("%s", error);
  text_free (error);
  return EXIT_ERROR;
}

void
opened_close (struct opened *o)
{
  repository_list_free (&o->list);
  store_close (&o->store);
}

bool
opened_still_good (struct opened *o, const struct selected *s)
{
  struct backup_list now;
  char *error = NULL;

  if (store_list (&o->store, &now, &error) == -1) {
    cmd_say ("%s", error);
    text_free (error);
    return false;
  }
  const struct backup_entry *e = repository_find (&now, s->entry->name);
  const struct manifest_disk *d = e != NULL ? manifest_find_disk (&e->manifest, s->disk->id) : NULL;
  bool good = d != NULL && !e->manifest.is_dropped && d->file != NULL
              && strcmp (d->file, s->disk->file) == 0;
  if (!good)
    cmd_say ("backup %s was pruned or merged meanwhile, so what was read may be something else",
             s->entry->name);
  repository_list_free (&now);
  return good;
}

/* ---- times ---- */

/* A time as people write it: 2026-01-31, 2026-01-31 23:59[:59], with a T in between, and a Z for
 * UTC.  A day alone stands for its end.  Microseconds since 1970, or false. */
static bool
parse_time (const char *text, int64_t *us)
{
  static const struct {
    const char *format;
    int64_t more_s; /* to the end of what was said */
  } formats[] = { { "%Y-%m-%d %H:%M:%S", 0 },
                  { "%Y-%m-%dT%H:%M:%S", 0 },
                  { "%Y-%m-%d %H:%M", 59 },
                  { "%Y-%m-%dT%H:%M", 59 },
                  { "%Y-%m-%d", 0 } };
  size_t nr = sizeof formats / sizeof formats[0];

  for (size_t i = 0; i < nr; i++) {
    struct tm tm = { .tm_isdst = -1 };
    const char *end = strptime (text, formats[i].format, &tm);
    bool utc = end != NULL && strcmp (end, "Z") == 0;
    if (end == NULL || (*end != '\0' && !utc))
      continue;
    if (i == nr - 1) { /* a day: the clock may be set forward or back on it */
      tm.tm_hour = 23;
      tm.tm_min = tm.tm_sec = 59;
    }
    time_t t = utc ? timegm (&tm) : mktime (&tm);
    *us = ((int64_t)t + formats[i].more_s) * 1000000 + 999999;
    return true;
  }
  return false;
}

void
format_backup_time (char text[BACKUP_TIME_TEXT], int64_t us)
{
  time_t t = (time_t)(us / 1000000);
  struct tm tm;

  if (localtime_r (&t, &tm) == NULL
      || strftime (text, BACKUP_TIME_TEXT, "%Y-%m-%d %H:%M:%S", &tm) == 0)
    strcpy (text, "?");
}

/* ---- choosing ---- */

/* The disk of E that is meant, or NULL. */
static const struct manifest_disk *
disk_of (const struct backup_entry *e, const char *disk)
{
  const struct manifest_disk *found = NULL;

  for (unsigned i = 0; i < e->manifest.nr_disks; i++) {
    const struct manifest_disk *d = &e->manifest.disks[i];
    if (d->file != NULL && (disk == NULL || strcmp (d->id, disk) == 0))
      found = d;
  }
  return found;
}

static int
complain (const struct opened *o, const char *at, const char *disk)
{
  const struct backup_entry *named = at != NULL ? repository_find (&o->list, at) : NULL;

  if (named != NULL && named->fault != NULL)
    cmd_say ("backup %s: %s", at, named->fault);
  else if (named != NULL && named->manifest.is_dropped)
    cmd_say ("backup %s is being pruned: it cannot be read any more", at);
  else if (named != NULL && disk != NULL)
    cmd_say ("backup %s does not hold a disk '%s'", at, disk);
  else if (at != NULL && backup_name_ok (at))
    cmd_say ("%s: there is no backup %s", o->store.repo.path, at);
  else
    cmd_say ("%s: there is no backup%s%s%s%s%s", o->store.repo.path,
             disk != NULL ? " of the disk '" : "", disk != NULL ? disk : "",
             disk != NULL ? "'" : "", at != NULL ? " that had ended by " : "",
             at != NULL ? at : "");
  return EXIT_ERROR;
}

/* A backup of several disks, and the user has not said which one. */
static int
complain_of_several (const struct backup_entry *e)
{
  CLEANUP_TEXT char *names = text_copy ("");

  for (unsigned i = 0; i < e->manifest.nr_disks; i++) {
    char *longer = text_printf ("%s%s'%s'", names, i > 0 ? ", " : "", e->manifest.disks[i].id);
    text_free (names);
    names = longer;
  }
  return cmd_usage_error ("backup %s holds %u disks: say which with --disk: %s", e->name,
                          e->manifest.nr_disks, names);
}

int
opened_select_any (const struct opened *o, const char *at, const char *disk, struct selected *s)
{
  bool by_name = at != NULL && backup_name_ok (at);
  int64_t until_us = INT64_MAX;

  if (at != NULL && !by_name && !parse_time (at, &until_us))
    return cmd_usage_error ("--at %s: neither a backup's name nor a time such as 2026-01-31 or "
                            "'2026-01-31 23:59'",
                            at);
  memset (s, 0, sizeof *s);
  for (unsigned i = 0; i < o->list.nr; i++) {
    const struct backup_entry *e = &o->list.list[i];
    const struct manifest_disk *d = disk_of (e, disk);
    if (e->fault != NULL || e->manifest.is_dropped || d == NULL
        || (by_name ? strcmp (e->name, at) != 0 : e->manifest.ended_us > until_us))
      continue;
    *s = (struct selected){ .entry = e, .disk = d };
  }
  return s->entry != NULL ? EXIT_DONE : complain (o, at, disk);
}

int
opened_select (const struct opened *o, const char *at, const char *disk, struct selected *s)
{
  int status = opened_select_any (o, at, disk, s);

  if (status == EXIT_DONE && disk == NULL && s->entry->manifest.nr_disks > 1)
    return complain_of_several (s->entry);
  return status;
}

/* ---- digests ---- */

struct progress {
  struct verify_meter meter;
  _Atomic int *signal;
};

static bool
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  struct progress *p = opaque;

  verify_meter_show (&p->meter, done, size);
  return p->signal == NULL || atomic_load (p->signal) == 0;
}

int
digest_of (const char *path, const char *format, bool show, _Atomic int *signal,
           char text[DIGEST_WHOLE_TEXT])
{
  const struct endpoint_options eo = { .writable = false };
  struct progress p = { .signal = signal };
  const struct image_digest_options io = { .opaque = &p, .progress = on_progress };
  char *error = NULL;
  bool kept;
  int r = -1;

  struct endpoint *ep = sync_open_image (path, format, &eo, &error);
  if (ep != NULL) {
    verify_meter_begin (&p.meter, show);
    r = image_digest (ep, &io, text, &kept, &error);
    verify_meter_end (&p.meter);
    endpoint_close (ep);
  }
  if (r == 0)
    return EXIT_DONE;
  bool cancelled = signal != NULL && atomic_load (signal) != 0;
  cmd_say ("%s", error);
  text_free (error);
  return cancelled ? EXIT_CANCELLED : EXIT_ERROR;
}
