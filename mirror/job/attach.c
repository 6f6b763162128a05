/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The beginning of a live mirror: everything is looked at before anything is changed.
 *
 *   ask the filter   -> how to reach the export, which nbdkit it runs in
 *   open the source  -> an NBD connection of our own first: the filter learns the disk's size from
 * it open the destination, and ask whether it may be written to at all lock             -> no
 * worker of an earlier server lives (worker-lock.h) attach           -> the region; from here on
 * the filter counts on us
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mirror/job/internal.h"
#include "mirror/endpoint/same-place.h"
#include "mirror/endpoint/blocking.h"

#define ABORT_BUG_FIRST 1032004 /* nbdkit 1.32.4 … */
#define ABORT_BUG_LAST 1033009  /* … to 1.33.9 (blueprint 2) */
#define SOURCE_CONNECTIONS 4    /* of each copier, where each takes one request */
#define COMPARE_PLACES 64
/* Where the first file system usually begins: clones of one template differ there, if nowhere else.
 */
#define COMPARE_ALSO (UINT64_C (1) << 20)
#define COMPARE_ATTEMPTS 5
#define OLD_WORKER_MS 3000 /* one that has lost its server gives its requests 2 s to be answered   \
                            */
#define SELF_PROBES 4
#define JOB_LEFT_OVER "%s: a job is left over here: --resume goes on with it, --restart starts over"

/* "1.32.5" as 1032005; 0 if it is no version. */
static unsigned
version_number (const char *version)
{
  unsigned a, b, c;
  if (version == NULL || sscanf (version, "%u.%u.%u", &a, &b, &c) != 3)
    return 0;
  return a * 1000000 + b * 1000 + c;
}

static json_t *
query (struct job *j)
{
  json_t *ret = NULL;
  char *error = NULL;
  struct control_call call
      = { .command = "query-mirror", .timeout_ms = JOB_CONTROL_TIMEOUT_MS, .ret = &ret };
  if (control_client_call (j->control, &call, &error) == -1) {
    job_say (j, JOB_ERROR, "%s: %s", j->o->control, error ? error : "out of memory");
    free (error);
  }
  return ret;
}

/* Does the plain file hold what the export shows?  The guest may write between the two reads, so a
 * difference counts only if it stays. */
static bool
same_content (struct endpoint *a, struct endpoint *b)
{
  uint64_t size = endpoint_info (a)->size;
  uint8_t *buf = NULL;
  struct channel *ca = channel_open (a, NULL, NULL), *cb = channel_open (b, NULL, NULL);
  bool same = ca != NULL && cb != NULL && endpoint_info (b)->size == size
              && posix_memalign ((void **)&buf, 4096, 8192) == 0;

  for (unsigned i = 0; same && size > 0 && i < COMPARE_PLACES; i++) {
    uint64_t offset = i == 1 && size > COMPARE_ALSO ? COMPARE_ALSO
                                                    : size / COMPARE_PLACES * i & ~UINT64_C (4095);
    uint32_t n = size - offset < 4096 ? (uint32_t)(size - offset) : 4096;
    same = false;
    for (unsigned k = 0; !same && k < COMPARE_ATTEMPTS; k++)
      same = sync_read (ca, buf, n, offset) == 0 && sync_read (cb, buf + 4096, n, offset) == 0
             && memcmp (buf, buf + 4096, n) == 0;
  }
  if (ca)
    channel_close (ca);
  if (cb)
    channel_close (cb);
  free (buf);
  return same;
}

/* Read the plain file below the export instead of the export, if the filter says that there is one
 * and it proves to be the same disk. */
static void
prefer_direct (struct job *j, const char *direct)
{
  char *argv[] = { (char *)direct, NULL };
  char *error = NULL;
  struct endpoint_options eo = { .writable = false };
  struct endpoint *file = endpoint_open (argv, 1, &eo, NULL, &error);

  if (file == NULL) {
    job_say (j, JOB_WARNING, "%s; reading through NBD instead", error ? error : direct);
    free (error);
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
  /* A killed client with several requests in flight would take the guest's server down. */
  if (v == 0 || (v >= ABORT_BUG_FIRST && v <= ABORT_BUG_LAST)) {
    eo.nr_in_flight = 1;
    eo.nr_connections = SOURCE_CONNECTIONS;
  }
  char *argv[] = { (char *)uri, NULL };
  j->source = endpoint_open (argv, 1, &eo, NULL, &error);
  if (j->source == NULL) {
    job_say (j, JOB_ERROR, "source: %s", error ? error : "out of memory");
    free (error);
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
             error ? error : "out of memory");
    free (error);
    break;
  }
  return true;
}

/* Attached to the filter INSTANCE: what an old worker may have had in flight goes into quarantine
 * before the file says that this filter knows of it. */
static void
take_over_the_past (struct job *j, const char *instance)
{
  char *error = NULL;

  j->unknown_past = worker_lock_unknown_past (&j->lock, instance);
  if (j->unknown_past) {
    bitmap_set (j->region, REGION_QUARANTINE, 0, j->region->geo.nr_blocks);
    bitmap_set (j->region, REGION_DIRTY, 0,
                j->region->geo.nr_blocks); /* only what is copied leaves quarantine */
    job_say (j, JOB_NOTICE,
             "%s: an earlier worker did not end in order, and its server has gone: its last writes"
             " may still come late, so everything is read back once it is copied",
             j->lock.path);
  }
  if (worker_lock_attached (&j->lock, instance, &error) == -1) {
    job_say (j, JOB_WARNING, "%s", error ? error : "out of memory");
    free (error);
  }
}

/* How many connections has the export had?  -1: not known. */
static json_int_t
opened_so_far (struct job *j)
{
  json_t *status = query (j), *n = json_object_get (status, "opened");
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
  for (unsigned i = 0; i < SELF_PROBES; i++) {
    char *error = NULL;
    before = opened_so_far (j);
    struct endpoint *again = endpoint_open (d->dest, d->nr_dest, &d->endpoint, NULL, &error);
    free (error);
    bool rose = opened_so_far (j) > before;
    if (again != NULL)
      endpoint_close (again);
    if (again == NULL || !rose)
      return false;
  }
  return true;
}

static int
open_destination (struct job *j, json_t *status)
{
  const struct session_options *d = &j->o->dest;
  uint64_t size = (uint64_t)json_integer_value (json_object_get (status, "size"));
  uint32_t block = (uint32_t)json_integer_value (json_object_get (status, "block-size"));
  char *error = NULL;

  if (d->nr_dest == 1
      && (same_place (d->dest[0], json_string_value (json_object_get (status, "uri")))
          || same_place (d->dest[0], json_string_value (json_object_get (status, "direct"))))) {
    job_say (j, JOB_ERROR, "refused: %s is the source itself", d->dest[0]);
    j->result = JOB_REFUSED;
    return -1;
  }
  j->dest = *d;
  bool file = d->nr_dest == 1 && strstr (d->dest[0], "://") == NULL;
  if (j->dry && file)
    return job_dry_file (j, size);
  /* An NBD server that is asked for a writable session may end another one for it. */
  j->dest.endpoint.writable = !j->dry;
  j->dest.endpoint.will_write = j->dry;
  j->dest.endpoint.session = j->dest_session;
  /* What a left over job was written to is there, or lost: a new file in its place is neither. */
  bool left_over = json_is_integer (json_object_get (status, "dirty-bytes"));
  j->dest.endpoint.create = !j->dry && !(left_over && j->o->start == JOB_RESUME);
  j->dest.endpoint.create_size = size;
  int errnum = 0;
  json_int_t opened = opened_so_far (j);
  j->dest.opened = endpoint_open (d->dest, d->nr_dest, &j->dest.endpoint, &errnum, &error);
  if (j->dest.opened == NULL) {
    job_say (j, JOB_ERROR, "destination: %s", error ? error : "out of memory");
    free (error);
    j->result = errnum == EROFS ? JOB_REFUSED : JOB_DEST_FAILED;
    return -1;
  }
  j->is_receive = endpoint_info (j->dest.opened)->is_receive;
  if (leads_back (j, opened)) {
    job_say (j, JOB_ERROR, "refused: %s leads to the source itself",
             endpoint_name (j->dest.opened));
    j->result = JOB_REFUSED;
    return -1;
  }
  /* Without a block size the filter has not told one yet: it is checked again when connecting. */
  error = session_refusal (j->dest.opened, size, block ? block : REGION_MAX_BLOCK_SIZE,
                           d->allow_no_flush);
  if (error) {
    job_say (j, JOB_ERROR, "refused: %s", error);
    free (error);
    j->result = JOB_REFUSED;
    return -1;
  }
  const char *note = endpoint_info (j->dest.opened)->note;
  if (note)
    job_say (j, JOB_NOTICE, "%s", note);
  return 0;
}

static double
number (json_t *o, const char *key)
{
  return json_number_value (json_object_get (o, key));
}

/* A resumed job goes on counting where its last worker stopped. */
static void
take_over_counters (struct job *j, json_t *old)
{
  j->base.reconnects = (uint64_t)number (old, "reconnects");
  j->base.passes = (uint64_t)number (old, "passes");
  j->base.degraded_s = number (old, "degraded-s");
  j->base.total_s = number (old, "total-s");
}

static int
attach (struct job *j)
{
  static const char *const starts[] = { "new", "resume", "restart" };
  json_t *ret = NULL;
  char *error = NULL, *class_ = NULL;
  int fd = -1;

  struct control_call call = { .command = "mirror-attach",
                               .args = json_pack ("{s:s}", "start", starts[j->o->start]),
                               .timeout_ms = JOB_CONTROL_TIMEOUT_MS,
                               .ret = &ret,
                               .got_fd = &fd,
                               .class_ = &class_ };
  if (control_client_call (j->control, &call, &error) == -1) {
    bool refused = class_
                   && (!strcmp (class_, "JobExists") || !strcmp (class_, "WorkerAttached")
                       || !strcmp (class_, "Fenced"));
    j->result = refused ? JOB_REFUSED : JOB_FAILED;
    if (class_ && !strcmp (class_, "JobExists"))
      job_say (j, JOB_ERROR, JOB_LEFT_OVER, j->o->control);
    else
      job_say (j, JOB_ERROR, "%s: %s", j->o->control, error ? error : "out of memory");
    free (class_);
    free (error);
    return -1;
  }
  bool resumed = json_is_true (json_object_get (ret, "resumed"));
  j->fresh = !resumed;
  if (resumed)
    take_over_counters (j, json_object_get (ret, "job"));
  else if (j->o->start == JOB_RESUME)
    job_say (j, JOB_NOTICE, "%s: nothing to resume: starting a full copy", j->o->control);
  if (fd != -1) {
    j->region = region_map (fd, &error);
    close (fd);
  }
  if (j->region == NULL) {
    job_say (j, JOB_ERROR, "%s: %s", j->o->control,
             fd == -1 ? "the filter passed no region"
             : error  ? error
                      : "out of memory");
    free (error);
    json_decref (ret);
    return -1;
  }
  take_over_the_past (j, json_string_value (json_object_get (ret, "instance")));
  json_decref (ret);
  if (j->region->geo.disk_size != endpoint_info (j->source)->size) {
    job_say (j, JOB_ERROR, "%s: the filter tracks %" PRIu64 " bytes but %s has %" PRIu64,
             j->o->control, j->region->geo.disk_size, endpoint_name (j->source),
             endpoint_info (j->source)->size);
    return -1;
  }
  if (endpoint_info (j->source)->min_block > j->region->geo.block_size) {
    job_say (j, JOB_ERROR,
             "%s takes requests of at least %" PRIu32 " bytes, but blocks of %" PRIu32
             " bytes are tracked: choose a larger block size (mirror-block-size=)",
             endpoint_name (j->source), endpoint_info (j->source)->min_block,
             j->region->geo.block_size);
    return -1;
  }
  return 0;
}

int
job_check (struct job *j, json_t **status)
{
  char *error = NULL;

  *status = NULL;
  j->result = JOB_FAILED;
  j->control = control_client_connect (j->o->control, JOB_CONTROL_TIMEOUT_MS, &error);
  if (j->control == NULL) {
    job_say (j, JOB_ERROR, "%s", error ? error : "out of memory");
    free (error);
    return -1;
  }
  json_t *before = query (j);
  if (before == NULL || open_source (j, before) == -1) {
    json_decref (before);
    return -1;
  }
  /* Again: it knows the disk now. */
  *status = query (j);
  bool ours = *status != NULL && reached (j, before, *status);
  json_decref (before);
  /* A dry run leaves nothing behind, not even the file of the lock; nor does it send anything that
   * could be late. */
  if (ours && attach_foreseen (j, *status) && (j->dry || alone (j))
      && open_destination (j, *status) == 0)
    return 0;
  return -1;
}

int
job_attach (struct job *j)
{
  char *error = NULL;
  json_t *status;

  int r = job_check (j, &status) == 0 ? attach (j) : -1;
  json_decref (status);
  if (r == -1)
    return -1;

  const struct engine_options eo = {
    .nr_copiers = j->o->nr_copiers,
    .rate_limit = j->rate_limit,
    .grace_ns = j->o->grace_ns,
  };
  if (engine_init (&j->engine, j->region, j->source, &eo, &error) == -1) {
    job_say (j, JOB_ERROR, "%s", error ? error : "out of memory");
    free (error);
    return -1;
  }
  j->engine_ready = true;
  return 0;
}
