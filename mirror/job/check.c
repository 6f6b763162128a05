/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The checks before a live mirror begins.  See check.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/text.h"
#include "mirror/endpoint/same-place.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/check.h"
#include "mirror/job/internal.h"
#include "mirror/job/same-content.h"

/* nbdkit 1.32.4 to 1.33.9 ends when a client dies with several requests in flight. */
#define ABORT_BUG_FIRST 1032004
#define ABORT_BUG_LAST 1033009
#define SOURCE_CONNECTIONS 4 /* of each copier, where each takes one request */
/* A worker that has lost its server waits 2 s for answers to its requests, and then ends. */
#define OLD_WORKER_MS 3000
#define WOULD_BE_CREATED "%s does not exist: it would be created"
#define SELF_PROBES 4

/* "1.32.5" as 1032005; 0 if it is no version. */
static unsigned
version_number (const char *version)
{
  unsigned a, b, c;
  if (version == NULL || sscanf (version, "%u.%u.%u", &a, &b, &c) != 3)
    return 0;
  return a * 1000000 + b * 1000 + c;
}

json_t *
job_query (struct job *j)
{
  json_t *ret = NULL;
  char *error = NULL;
  struct control_call call
      = { .command = "query-mirror", .timeout_ms = JOB_CONTROL_TIMEOUT_MS, .ret = &ret };
  if (control_client_call (j->control, &call, &error) == -1) {
    job_say (j, JOB_ERROR, "%s: %s", j->o->control, error);
    text_free (error);
  }
  return ret;
}

/* Read the plain file below the export instead of the export, if the filter says that there is one
 * and it proves to be the same disk. */
static void
prefer_direct (struct job *j, const char *direct)
{
  char *argv[] = { (char *)direct, NULL };
  char *error = NULL;
  struct endpoint_options eo = {
    .layers = j->o->sync.mode == ENGINE_SYNC_TOP,
    .connect_timeout_ms = j->o->dest.endpoint.connect_timeout_ms,
    .request_timeout_ms = j->o->dest.endpoint.request_timeout_ms,
  };
  struct endpoint *file = endpoint_open (argv, 1, &eo, NULL, &error);

  if (file == NULL) {
    job_say (j, JOB_WARNING, "%s; reading through NBD instead", error);
    text_free (error);
    return;
  }
  if (!same_content (j->source, file)) {
    job_say (j, JOB_WARNING, "%s does not hold what %s shows; reading through NBD instead", direct,
             endpoint_name (j->source));
    endpoint_close (file);
    return;
  }
  endpoint_close (j->source);
  j->source = file;
  if (endpoint_info (file)->note)
    job_say (j, JOB_NOTICE, "%s", endpoint_info (file)->note);
}

static int
open_source (struct job *j, json_t *status)
{
  const char *uri = json_string_value (json_object_get (status, "uri"));
  const char *direct = json_string_value (json_object_get (status, "direct"));
  const char *version = json_string_value (json_object_get (status, "nbdkit-version"));
  unsigned v = version_number (version);
  struct endpoint_options eo = j->o->dest.endpoint;
  char *error = NULL;

  if (uri == NULL) {
    job_say (j, JOB_ERROR,
             "%s: the server does not say how to reach its export: start it with mirror-uri=URI",
             j->o->control);
    return -1;
  }
  eo.writable = eo.create = false;
  const char *layers = json_string_value (json_object_get (status, "layers-export"));
  if (j->o->sync.mode == ENGINE_SYNC_TOP && !direct)
    eo.layers_export = layers;
  if (v == 0 || (v >= ABORT_BUG_FIRST && v <= ABORT_BUG_LAST)) { /* the guest's server */
    endpoint_read_others (&eo);
    eo.nr_connections = SOURCE_CONNECTIONS;
  }
  char *argv[] = { (char *)uri, NULL };
  int errnum = 0;
  j->source = endpoint_open (argv, 1, &eo, &errnum, &error);
  if (j->source == NULL) {
    /* nbdkit answers so where the filter or the plugin does not open the disk. */
    job_say (j, JOB_ERROR, "source: %s%s", error,
             errnum == ENOENT ? " (if its socket is there, the server does not open the disk, and"
                                " its log says why: was the disk resized?)"
                              : "");
    text_free (error);
    return -1;
  }
  if (direct)
    prefer_direct (j, direct);
  return 0;
}

/* Did our connection reach this filter's export, not another one?  BEFORE and AFTER it was made. */
static bool
reached (struct job *j, json_t *before, json_t *after)
{
  json_t *a = json_object_get (before, "opened"), *b = json_object_get (after, "opened");

  /* An older filter does not count. */
  if (!json_is_integer (a) || !json_is_integer (b)
      || json_integer_value (b) > json_integer_value (a))
    return true;
  job_say (j, JOB_ERROR, "refused: %s is not the export that %s tracks: mirror-uri= is wrong",
           json_string_value (json_object_get (before, "uri")), j->o->control);
  j->result = JOB_REFUSED;
  return false;
}

/* What mirror-attach will refuse, found before a destination file is created or extended for
 * nothing. */
static bool
attach_foreseen (struct job *j, json_t *status)
{
  const char *state = json_string_value (json_object_get (status, "state"));
  const char *gate = json_string_value (json_object_get (status, "gate"));
  const char *worker = json_string_value (json_object_get (status, "worker"));
  static const char *const free_to_start[] = { "idle", "cancelled", "completed" };

  if (gate && !strcmp (gate, "fenced"))
    job_say (j, JOB_ERROR, "%s: this disk was handed over: writes are refused until a rollback",
             j->o->control);
  else if (worker && !strcmp (worker, "attached"))
    job_say (j, JOB_ERROR, "%s: a worker is attached: process %lld", j->o->control,
             (long long)json_integer_value (json_object_get (status, "worker-pid")));
  else {
    if (j->o->start == JOB_RESUME && !json_is_integer (json_object_get (status, "dirty-bytes"))) {
      job_say (j, JOB_ERROR, JOB_NOTHING_LEFT, j->o->control);
      j->result = JOB_REFUSED;
      return false;
    }
    bool left_over = state != NULL && j->o->start == JOB_NEW;
    for (unsigned i = 0; i < 3; i++)
      left_over = left_over && strcmp (state, free_to_start[i]) != 0;
    if (!left_over)
      return true;
    job_say (j, j->dry ? JOB_WARNING : JOB_ERROR, JOB_LEFT_OVER, j->o->control);
    if (j->dry)
      return true;
  }
  j->result = JOB_REFUSED;
  return false;
}

/* Is there no other worker, not even one of a server that has ended? */
static bool
alone (struct job *j)
{
  char *error = NULL;

  switch (worker_lock_take (&j->lock, j->o->control, OLD_WORKER_MS, &error)) {
  case WORKER_LOCK_HELD:
    break;
  case WORKER_LOCK_BUSY:
    job_say (j, JOB_ERROR,
             "refused: an earlier worker of this disk, process %ld, still lives (it locks %s): its"
             " last writes could undo newer ones; end it first",
             (long)j->lock.left_by_pid, j->lock.path);
    j->result = JOB_REFUSED;
    return false;
  case WORKER_LOCK_FAILED:
    job_say (j, JOB_WARNING,
             "%s; going on, but should the disk's server end, nothing will tell a later worker"
             " about this one",
             error);
    text_free (error);
    break;
  }
  return true;
}

/* A dry run, and the destination is a local file or device: open it as it is, and say what would
 * become of it. */
static int
foresee_file (struct job *j, uint64_t size)
{
  const char *path = j->dest.dest[0];
  char *error = NULL, *dir = text_copy (path), *slash = strrchr (dir, '/');
  int errnum = 0;
  struct statvfs fs;

  j->dest.endpoint.writable = true;
  j->dest.opened = endpoint_open (j->dest.dest, 1, &j->dest.endpoint, &errnum, &error);
  if (slash)
    slash[slash == dir ? 1 : 0] = '\0';
  const char *where = slash ? dir : ".";
  bool creatable = errnum == ENOENT && access (where, W_OK | X_OK) == 0;
  if (j->dest.opened == NULL && !creatable) {
    job_say (j, JOB_ERROR, "destination: %s", error);
    j->result = errnum == EROFS || errnum == ENDPOINT_BAD_NAME ? JOB_REFUSED : JOB_DEST_FAILED;
    text_free (error);
    text_free (dir);
    return -1;
  }
  text_free (error);
  uint64_t have = j->dest.opened ? endpoint_info (j->dest.opened)->size : 0;
  if (j->dest.opened == NULL)
    job_say (j, JOB_NOTICE, WOULD_BE_CREATED, path);
  else if (have < size)
    job_say (j, JOB_NOTICE, "%s is shorter than the disk: it would be extended", path);
  if (have < size && statvfs (where, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < size - have)
    job_say (j, JOB_WARNING, "%s: %" PRIu64 " MiB are free, and up to %" PRIu64 " MiB are needed",
             where, (uint64_t)fs.f_bavail * fs.f_frsize >> 20, (size - have) >> 20);
  text_free (dir);
  return 0;
}

/* How many connections has the export had?  -1: not known. */
static json_int_t
opened_so_far (struct job *j)
{
  json_t *status = job_query (j), *n = json_object_get (status, "opened");
  json_int_t count = json_is_integer (n) ? json_integer_value (n) : -1;
  json_decref (status);
  return count;
}

/* Has the destination that was just opened led to the very export that we mirror, by a way that its
 * name does not show (another address, a proxy)?  BEFORE: how many connections the export had had.
 * A guest may have connected by chance, so it is tried again: chance does not come each time. */
static bool
leads_back (struct job *j, json_int_t before)
{
  struct session_options *d = &j->dest;

  const struct endpoint_info *info = endpoint_info (d->opened);
  if (before < 0 || !info->is_nbd || info->is_receive || opened_so_far (j) <= before)
    return false;
  struct endpoint_options probe = d->endpoint;
  probe.nr_channels = 0;
  for (unsigned i = 0; i < SELF_PROBES; i++) {
    char *error = NULL;
    before = opened_so_far (j);
    struct endpoint *again = endpoint_open (d->dest, d->nr_dest, &probe, NULL, &error);
    text_free (error);
    bool rose = opened_so_far (j) > before;
    if (again != NULL)
      endpoint_close (again);
    if (again == NULL || !rose)
      return false;
  }
  return true;
}

/* What the mode of --sync needs besides source and destination. */
static int
prepare_sync (struct job *j)
{
  char *error = sync_refusal (&j->o->sync, j->source, &j->o->dest);

  if (error != NULL) {
    job_say (j, JOB_ERROR, "refused: %s", error);
    j->result = JOB_REFUSED;
  } else if (sync_open_base (&j->o->sync, &j->o->dest.endpoint, &j->base_image, &error) == 0)
    return 0;
  else
    job_say (j, JOB_ERROR, "%s", error);
  text_free (error);
  return -1;
}

static bool
names_the_source (const struct session_options *d, json_t *status)
{
  return d->nr_dest == 1
         && (same_place (d->dest[0], json_string_value (json_object_get (status, "uri")))
             || same_place (d->dest[0], json_string_value (json_object_get (status, "direct")))
             || same_place (d->dest[0], json_string_value (json_object_get (status, "disk"))));
}

/* The destination is open, and the export had had OPENED connections before. */
static int
check_destination (struct job *j, json_t *status, uint64_t size, json_int_t opened)
{
  uint32_t block = (uint32_t)json_integer_value (json_object_get (status, "block-size"));
  const struct endpoint_info *info = endpoint_info (j->dest.opened);

  j->is_receive = info->is_receive;
  if (leads_back (j, opened))
    return job_refuse_destination (
        j, text_printf ("%s leads to the source itself", endpoint_name (j->dest.opened)));
  /* A filter that has told no block size yet tells it later: session_connect() checks again. */
  char *why = session_refusal (j->dest.opened, size, block ? block : REGION_MAX_BLOCK_SIZE,
                               j->dest.allow_no_flush);
  if (why)
    return job_refuse_destination (j, why);
  if (info->note)
    job_say (j, JOB_NOTICE, "%s", info->note);
  return 0;
}

static int
open_destination (struct job *j, json_t *status)
{
  const struct session_options *d = &j->o->dest;
  uint64_t size = (uint64_t)json_integer_value (json_object_get (status, "size"));
  char *error = NULL;

  if (names_the_source (d, status))
    return job_refuse_destination (j, text_printf ("%s is the source itself", d->dest[0]));
  j->dest = *d;
  j->dest.endpoint.nr_in_flight = ENGINE_IN_FLIGHT;
  j->dest.endpoint.nr_multi = session_connections_each (j->o->max_connections);
  bool file = d->nr_dest == 1 && uri_kind (d->dest[0]) == URI_NONE;
  if (j->dry && file)
    return foresee_file (j, size);
  const char *image = j->dest.endpoint.image;
  if (j->dry && image != NULL && access (image, F_OK) == -1 && errno == ENOENT) {
    job_say (j, JOB_NOTICE, WOULD_BE_CREATED, image);
    return 0;
  }
  /* An NBD server that is asked for a writable session may end another one for it. */
  j->dest.endpoint.writable = !j->dry;
  j->dest.endpoint.will_write = j->dry;
  const struct endpoint *base = j->o->sync.mode == ENGINE_SYNC_BASE ? j->base_image : NULL;
  j->dest.endpoint.nr_channels = j->dry ? 0 : session_channels (j->o->max_connections, NULL, base);
  j->dest.endpoint.session = &j->dest_session;
  /* What a left over job was written to is there, or lost: a new file in its place is neither. */
  bool left_over = json_is_integer (json_object_get (status, "dirty-bytes"));
  j->dest.endpoint.create
      = !j->dry && !(left_over && job_resumes (j)) && j->o->sync.mode != ENGINE_SYNC_INCREMENTAL;
  j->dest.endpoint.create_size = size;
  int errnum = 0;
  json_int_t opened = opened_so_far (j);
  j->dest.opened = endpoint_open (d->dest, d->nr_dest, &j->dest.endpoint, &errnum, &error);
  if (j->dest.opened == NULL) {
    job_say (j, JOB_ERROR, "destination: %s", error);
    text_free (error);
    j->result = errnum == EROFS || errnum == ENDPOINT_BAD_NAME ? JOB_REFUSED : JOB_DEST_FAILED;
    return -1;
  }
  return check_destination (j, status, size, opened);
}

/* May we attach, with nobody beside us?  The job is looked at again once we have the lock: another
 * worker may have begun it, or gone on with it, while we waited.  A dry run leaves nothing behind,
 * not even the file of the lock; nor does it send anything that could be late. */
static bool
may_attach (struct job *j, json_t **status)
{
  if (!attach_foreseen (j, *status))
    return false;
  if (j->dry)
    return true;
  if (!alone (j))
    return false;
  json_decref (*status);
  *status = job_query (j);
  return *status != NULL && attach_foreseen (j, *status);
}

int
job_check (struct job *j, json_t **status)
{
  char *error = NULL;

  *status = NULL;
  j->result = JOB_FAILED;
  j->control = control_client_connect (j->o->control, JOB_CONTROL_TIMEOUT_MS, &error);
  if (j->control == NULL) {
    job_say (j, JOB_ERROR, "%s", error);
    text_free (error);
    return -1;
  }
  json_t *before = job_query (j);
  if (before == NULL || open_source (j, before) == -1) {
    json_decref (before);
    return -1;
  }
  /* Again: it knows the disk now. */
  *status = job_query (j);
  bool ours = *status != NULL && reached (j, before, *status);
  json_decref (before);
  if (ours && may_attach (j, status) && job_choose_since (j, *status) == 0 && prepare_sync (j) == 0
      && open_destination (j, *status) == 0 && job_prove (j, *status) == 0) {
    /* A resumed job has proved what it can of its base, and recognises its destination. */
    bool left_over = json_is_integer (json_object_get (*status, "dirty-bytes"));
    j->dest.proved = !left_over || !job_resumes (j);
    return 0;
  }
  return -1;
}
