/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file of a server.  See persist.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <linux/magic.h>
#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/uuid.h"
#include "control/wire.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/recordings.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/persist-disk.h"
#include "nbd-plugin/mirror/persist.h"
#include "nbd-plugin/own-thread.h"

static const char another_server[] = "another server has served the disk meanwhile";

/* ---- the note: the job's figures, as JSON ---- */

static void
make_note (struct mirror *m)
{
  const struct region *r = m->attachment.region;
  const struct region_header *h = r->hdr;
  json_t *o
      = json_pack ("{s:s, s:I, s:I, s:I, s:I, s:I, s:O}", "instance", m->attachment.instance,
                   "session", (json_int_t)atomic_load (&h->session), "dirtied-blocks",
                   (json_int_t)atomic_load (&h->dirtied_total), "sent-bytes",
                   (json_int_t)atomic_load (&h->sent_bytes), "saved-bytes",
                   (json_int_t)atomic_load (&h->saved_bytes), "zero-bytes",
                   (json_int_t)atomic_load (&h->zero_bytes), "published", m->attachment.published);
  char *text = o != NULL ? json_dumps (o, JSON_COMPACT) : NULL;

  json_decref (o);
  if (text != NULL && strlen (text) < STATE_NOTE_MAX)
    state_set_note (&m->persist.state, text);
  free (text);
}

static uint64_t
figure (const json_t *o, const char *name)
{
  json_int_t v = json_integer_value (json_object_get (o, name));
  return v > 0 ? (uint64_t)v : 0;
}

/* What the note says goes into R and the attachment.  Without one the worker must take the filter
 * for another, and puts every block into quarantine. */
static void
read_note (struct mirror *m, const struct state_found *f, struct region *r)
{
  struct attachment *a = &m->attachment;
  json_t *o = json_loads (f->note, 0, NULL);
  json_t *published = json_object_get (o, "published");
  const char *instance = json_string_value (json_object_get (o, "instance"));

  if (instance != NULL && strlen (instance) == UUID_TEXT_BYTES - 1)
    memcpy (a->instance, instance, UUID_TEXT_BYTES);
  uint64_t session = figure (o, "session");
  atomic_store (&r->hdr->session, (session > 0 ? session : 1) + 1);
  atomic_store (&r->hdr->dirtied_total, figure (o, "dirtied-blocks"));
  atomic_store (&r->hdr->sent_bytes, figure (o, "sent-bytes"));
  atomic_store (&r->hdr->saved_bytes, figure (o, "saved-bytes"));
  atomic_store (&r->hdr->zero_bytes, figure (o, "zero-bytes"));
  /* The note may be older than the bits. */
  atomic_store (&r->hdr->sent_is_durable, 1);
  if (json_is_object (published) && attachment_publish (a, published, NULL) == -1)
    json_object_clear (a->published);
  json_decref (o);
}

/* ---- the start ---- */

/* 0, or -1 with *ERROR. */
static int
open_file (struct persist *p, uint64_t *size, char **error)
{
  CLEANUP_TEXT char *why = NULL;
  int *fd = &p->file.fd;
  struct statfs fs;
  struct stat st;

  *fd = open (p->path, O_RDWR | O_CLOEXEC);
  bool made = *fd == -1 && errno == ENOENT;
  if (made)
    *fd = open (p->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (*fd == -1 || fstat (*fd, &st) == -1 || fstatfs (*fd, &fs) == -1)
    return text_error (error, "mirror-state=%s: %s", p->path, strerror (errno));
  if (!S_ISREG (st.st_mode))
    return text_error (error, "mirror-state=%s: this is not a regular file", p->path);
  if (!p->is_volatile && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)) {
    if (made)
      unlink (p->path);
    return text_error (error,
                       "mirror-state=%s: this file system is in memory and would not survive the"
                       " power; choose another place, or give mirror-state-volatile=yes (to"
                       " nbdmirror serve after --)",
                       p->path);
  }
  if (state_file_lock (&p->file, NULL, &why) == -1)
    return text_error (error, "mirror-state=%s: %s", p->path, why);
  *size = (uint64_t)st.st_size;
  return 0;
}

/* The job that was found is the attachment's, as if its worker had just been lost. */
static void
take_job (struct mirror *m, const struct state_found *f, struct region *r)
{
  struct persist *p = &m->persist;

  state_fill_region (&p->state, r);
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    if (state_find_sample (p->file.fd, f, i, &s))
      samples_put (r, &s);
  }
  read_note (m, f, r);
  m->attachment.region = r;
  m->attachment.ended = "detached";
  text_free (m->attachment.reason);
  m->attachment.reason = text_copy ("the source's server was started again");
  p->how = f->how;
  p->recovered_bytes = region_bytes (&f->layout.geo, 0, f->dirty_blocks);
  p->over_marked_bytes = f->dirty_blocks == f->layout.geo.nr_blocks && f->how == STATE_FROM_NOTHING
                             ? p->recovered_bytes
                             : (f->dirty_blocks - f->fine_blocks) << f->layout.geo.block_shift;
  state_set_region (&p->state, r);
}

/* Go on with what was found. */
static int
take_over (struct mirror *m, const struct state_found *f, const uint8_t boot[16], char **error)
{
  struct persist *p = &m->persist;
  struct region *r = NULL;
  uint8_t uuid[16];

  uuid_make (uuid);
  if (f->bits != NULL) {
    r = region_create (&f->layout.geo, uuid, error);
    if (r == NULL)
      return -1;
  }
  int done = r != NULL ? state_file_map_job (&p->file, &f->layout, error) : 0;
  if (done == 0 && f->recorded != NULL)
    done = state_file_map_recordings (&p->file, &f->layout, error);
  if (done == 0)
    done = state_continue (&p->state, f, p->file.live, p->file.slots, uuid, boot, error);
  if (done == 0 && r != NULL && tracker_add (&m->tracker, r) == -1)
    done = text_error (error, "too many regions");
  if (done == -1) {
    region_free (r);
    return -1;
  }
  if (r != NULL)
    take_job (m, f, r);
  return 0;
}

static void
tell_found (const struct persist *p, const struct state_found *f)
{
  if (f->how != STATE_FROM_NOTHING)
    return;
  nbdkit_error ("mirror-state=%s: %s%s%s", p->path, f->reason,
                f->bits != NULL ? ": the job left over copies everything again" : "",
                f->recorded != NULL ? ": the checkpoints are inconsistent" : "");
}

/* What FOUND says of this disk has no use once the disk has another size: tracking begins anew, in
 * an empty file.  0, or -1 with *WHY. */
static int
begin_anew (struct persist *p, struct state_found *found, const struct state_identity *now,
            char **why)
{
  nbdkit_error ("mirror-state=%s: the disk was resized from %llu to %llu bytes: tracking begins"
                " anew, and %s",
                p->path, (unsigned long long)found->super.identity.size,
                (unsigned long long)now->size,
                found->super.job ? "the job left over and all checkpoints are dropped"
                                 : "all checkpoints are dropped");
  state_found_free (found);
  if (ftruncate (p->file.fd, 0) == -1 || fsync (p->file.fd) == -1)
    return text_error (why, "it cannot be emptied: %s", strerror (errno));
  memset (found, 0, sizeof *found); /* as state_find() says of an empty file */
  return 0;
}

int
persist_open (struct mirror *m, char **error)
{
  struct persist *p = &m->persist;
  struct state_identity now;
  struct state_found found;
  uint8_t boot[16];
  uint64_t size = 0;
  CLEANUP_TEXT char *why = NULL;

  if (p->path != NULL && open_file (p, &size, error) == -1)
    return -1;
  persist_disk_open (p, m->config.direct);
  if (p->path == NULL) {
    persist_disk_unmark (p, m->config.direct);
    return 0;
  }
  const struct state_io io = state_file_io (&p->file);
  state_init (&p->state, &io);
  p->open = true;
  state_boot_id (boot);
  state_identity_of (p->file.disk_fd, &now);
  if (state_find (p->file.fd, size, boot, p->file.disk_fd != -1 ? &now : NULL, &found, &why) == -1)
    return text_error (error,
                       "mirror-state=%s: %s.  Remove it to begin without it: the next mirror is a"
                       " full copy then",
                       p->path, why);
  int r = 0;
  if (found.tracked && state_disk_was_resized (&found.super, &now))
    r = begin_anew (p, &found, &now, &why);
  if (r == 0)
    r = persist_disk_mark (p, &found, &now, &why);
  if (r == 0)
    r = found.tracked ? take_over (m, &found, boot, &why) : state_know (&p->state, &found);
  if (r == -1)
    text_error (error, "mirror-state=%s: %s", p->path, why != NULL ? why : "out of memory");
  else
    tell_found (p, &found);
  state_found_free (&found);
  return r;
}

int
persist_start (struct mirror *m)
{
  struct persist *p = &m->persist;

  if (!p->open)
    return 0;
  if (own_thread_start (&p->worker, state_work, &p->state) == -1)
    return -1;
  p->worker_runs = true;
  pthread_setname_np (p->worker, "mirror-state");
  if (own_thread_start (&p->cooler, state_cool, &p->state) == -1)
    return -1;
  p->cooler_runs = true;
  pthread_setname_np (p->cooler, "mirror-cool");
  return 0;
}

/* False if they did not run. */
static bool
end_threads (struct persist *p)
{
  bool ran = p->worker_runs && p->cooler_runs;

  state_stop (&p->state);
  if (p->worker_runs)
    pthread_join (p->worker, NULL);
  if (p->cooler_runs)
    pthread_join (p->cooler, NULL);
  p->worker_runs = p->cooler_runs = false;
  return ran;
}

void
persist_close (struct mirror *m)
{
  struct persist *p = &m->persist;
  struct state_identity id;

  if (!p->open) {
    fd_close (&p->file.disk_fd);
    return;
  }
  if (end_threads (p)) {
    if (m->attachment.region != NULL)
      make_note (m);
    state_identity_of (p->file.disk_fd, &id);
    bool ours = persist_disk_is_ours (p);
    /* If it was resized meanwhile, the next server has to notice, also if its old size is back. */
    id.size = p->state.disk.size; /* 0 in both where it is not known */
    if (ours)
      state_close_clean (&p->state, &id);
    else if (atomic_load (&p->state.active))
      nbdkit_error ("mirror-state=%s: %s; the next server takes every block for changed", p->path,
                    another_server);
  }
  state_destroy (&p->state);
  state_file_close (&p->file);
  p->open = false;
}

/* ---- jobs ---- */

void
persist_tracks (struct mirror *m)
{
  m->persist.settling = false;
  m->persist.shards_seen = 0;
}

void
persist_check_disk (struct mirror *m)
{
  struct persist *p = &m->persist;

  if (p->open && !persist_disk_is_ours (p))
    state_break (&p->state, another_server);
}

int
persist_map_again (struct persist *p, char **error)
{
  struct state *s = &p->state;

  if (!state_lost_page (s))
    return 0;
  /* A round that is under way must not take what was lost, and reads as clean now, for true. */
  pthread_mutex_lock (&s->io_lock);
  int r = state_file_map_again (&p->file, &s->layout, error);
  if (r == 0)
    state_mark_all (s);
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

int
persist_begin (struct mirror *m, const struct region_geometry *geo, const char *since, char **error)
{
  struct persist *p = &m->persist;
  struct state_layout layout;
  uint8_t uuid[16], boot[16];
  CLEANUP_TEXT char *why = NULL;

  if (!p->open)
    return 0;
  state_set_region (&p->state, NULL);
  persist_disk_note_size (p, geo);
  if (state_layout_init (&layout, geo->disk_size, geo->block_size) == -1)
    return text_error (error, "%s: %s", p->path, strerror (errno));
  uuid_make (uuid);
  state_boot_id (boot);
  if (persist_map_again (p, &why) == -1 || state_file_map_job (&p->file, &layout, &why) == -1
      || state_begin (&p->state, &layout, p->file.live, uuid, boot, since, &why) == -1)
    return text_error (error, "%s: %s", p->path, why);
  persist_tracks (m);
  p->how = STATE_NO_JOB;
  return 0;
}

int
persist_fill (struct mirror *m, const char *since, struct region *r, char **error)
{
  struct state *s = &m->persist.state;

  if (!m->persist.open)
    return text_error (error, "this server keeps no state file, so it has no checkpoint");
  uint64_t *bits = calloc (r->geo.nr_words + 1, 8);
  if (bits == NULL)
    return text_error (error, "out of memory");
  persist_check_disk (m);
  int done = state_changed_now (s, since, bits, error);
  if (done == 0)
    bitmap_set_words (r, REGION_DIRTY, 0, r->geo.nr_words, bits);
  free (bits);
  return done;
}

void
persist_region (struct mirror *m, const struct region *r)
{
  struct persist *p = &m->persist;

  if (!p->open)
    return;
  if (r == NULL)
    state_end (&p->state);
  else
    state_set_region (&p->state, r);
}

void
persist_keep (struct mirror *m)
{
  if (m->persist.open)
    state_set_region (&m->persist.state, NULL);
}

static void
drop_job (struct mirror *m)
{
  attachment_drop_region (m);
  m->attachment.ended = "idle";
  json_object_clear (m->attachment.published);
}

void
persist_bypassed (struct mirror *m)
{
  struct persist *p = &m->persist;

  if (!p->open)
    return;
  if (m->attachment.region != NULL) { /* of an earlier server: nobody else could have begun it */
    nbdkit_error ("mirror-state=%s: the job left over has missed what was written to the disk"
                  " without passing the server: it is dropped",
                  p->path);
    drop_job (m);
  }
  state_break (&p->state, "the disk was written to without passing the server");
}

/* What was found at the start belongs to another disk if the sizes differ. */
static void
compare_size (struct mirror *m)
{
  struct persist *p = &m->persist;
  const struct region_geometry *had = &p->state.layout.geo;
  struct region_geometry geo;

  if (p->disowned || had->block_size == 0 || !tracker_geometry (&m->tracker, &geo)
      || memcmp (&geo, had, sizeof geo) == 0)
    return;
  if (m->attachment.region != NULL) {
    nbdkit_error ("mirror-state=%s: the job left over is of a disk of %llu bytes in blocks of %u,"
                  " not of this one: it is dropped",
                  p->path, (unsigned long long)had->disk_size, had->block_size);
    drop_job (m);
  }
  nbdkit_error ("mirror-state=%s: it is of a disk of %llu bytes in blocks of %u, not of this one",
                p->path, (unsigned long long)had->disk_size, had->block_size);
  p->disowned = true;
  state_disown (&p->state, "the disk's size, or that of its blocks, has changed");
}

static void
tell_loss (struct persist *p, const struct state_view *v)
{
  if (v->lost && !p->loss_told)
    nbdkit_error ("mirror-state=%s is inconsistent: %s.  A job goes on in memory; the next server"
                  " will take every block for dirty, and no checkpoint is to be believed",
                  p->path, v->reason);
  p->loss_told = v->lost;
}

bool
persist_settles (const struct mirror *m)
{
  return m->persist.open && m->attachment.region != NULL && !m->persist.settling;
}

void
persist_tick (struct mirror *m)
{
  struct persist *p = &m->persist;
  struct state_view v;

  if (!p->open)
    return;
  state_look (&p->state, &v);
  if (!v.job && !v.lost)
    return;
  tell_loss (p, &v);
  compare_size (m);
  if (!p->settling && gate_all_passed (&m->gate, &p->shards_seen)) {
    p->settling = true;
    state_allow_settling (&p->state);
  }
  if (m->attachment.region != NULL && clock_ms () - p->noted_ms >= PERSIST_NOTE_MS) {
    p->noted_ms = clock_ms ();
    make_note (m);
  }
}

void
persist_status (struct mirror *m, json_t *o)
{
  static const char *const how[] = { NULL, "clean", "exact", "extents", "everything" };
  struct persist *p = &m->persist;
  struct state_view v;

  if (!p->open)
    return;
  state_look (&p->state, &v);
  const char *status = v.lost ? "inconsistent" : v.job ? "active" : "idle";
  json_object_set_new (o, "state-file", wire_text_or_null (p->path));
  json_object_set_new (o, "state-status", json_string (status));
  json_object_set_new (o, "state-reason", v.lost ? json_string (v.reason) : json_null ());
  json_object_set_new (o, "state-recording", json_boolean (v.recording));
  json_object_set_new (o, "state-hot-extents", json_integer ((json_int_t)v.hot));
  json_object_set_new (o, "state-hot-limit", json_integer ((json_int_t)v.hot_limit));
  json_object_set_new (o, "state-recovery",
                       how[p->how] != NULL ? json_string (how[p->how]) : json_null ());
  json_object_set_new (o, "state-recovered-bytes", json_integer ((json_int_t)p->recovered_bytes));
  json_object_set_new (o, "state-over-marked-bytes",
                       json_integer ((json_int_t)p->over_marked_bytes));
}
