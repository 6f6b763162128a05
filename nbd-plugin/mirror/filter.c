/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit-mirror-filter: marks every mutation in the dirty bitmaps of attached mirror jobs, and lets
 * a worker hold and finally fence the guest's mutations.  This file has nbdkit's callbacks and the
 * parameters, nothing else.
 *
 * The filter sits in the guest's I/O path, so it does as little as it can.  Reads and block
 * status do not come here at all, nor do any of the can_ callbacks, so that everything the layer
 * below can do passes through unchanged.  The layer below is only ever called within a guest's own
 * request.
 *
 * Every mutation goes, in the order that rules R2 and R3 ask for (gate.h has the reason):
 *   count it in; wait for the gate; layer below; mark, whatever came back; count it out;
 *   wait at the pace (pace.h).
 * A flush is no mutation.  It comes here only for the pace.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/text.h"
#include "control/lend-export.h"
#include "dirty-bitmap/urgent.h"
#include "nbd-plugin/mirror/commands.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/receiving.h"
#include "nbd-plugin/mirror/shutdown.h"
#include "nbd-plugin/mirror/thread.h"

static struct mirror mirror = { .config.export = "" };

/* -D mirror.control=1: every command.  -D mirror.gate=1: every change of the gate. */
NBDKIT_DLL_PUBLIC int mirror_debug_control = 0;
NBDKIT_DLL_PUBLIC int mirror_debug_gate = 0;

/* A connection.  Its mutations are counted in one shard, so that connections share no cache line.
 */
struct handle {
  unsigned shard;
  bool flushes_all; /* its flushes cover what other connections have written */
};

static void
mirror_load (void)
{
  if (mirror.loaded++ > 0)
    return; /* refused in get_ready */
  tracker_init (&mirror.tracker);
  pace_init (&mirror.pace);
  attachment_init (&mirror.attachment);
  mirror.persist.file = (struct state_file)STATE_FILE_INIT;
}

static void
mirror_unload (void)
{
  if (--mirror.loaded > 0)
    return;
  persist_close (&mirror);
  attachment_free (&mirror);
  fence_close (&mirror.fence);
  bypass_close (&mirror.bypass);
  pace_destroy (&mirror.pace);
  tracker_destroy (&mirror.tracker);
  free (mirror.config.control);
  free (mirror.config.direct);
  free (mirror.config.disk);
  free (mirror.persist.path);
}

static int
absolute_path (const char *key, const char *value, char **path)
{
  if (*value == '\0') {
    nbdkit_error ("%s is empty", key);
    return -1;
  }
  free (*path);
  *path = nbdkit_absolute_path (value);
  return *path != NULL ? 0 : -1;
}

/* The same, but an NBD URI stays as it is. */
static int
path_or_uri (const char *key, const char *value, char **where)
{
  if (strncmp (value, "nbd://", 6) != 0 && strncmp (value, "nbd+unix://", 11) != 0)
    return absolute_path (key, value, where);
  free (*where);
  *where = strdup (value);
  if (*where == NULL)
    nbdkit_error ("%s: %m", key);
  return *where != NULL ? 0 : -1;
}

static int
set_block_size (const char *value)
{
  int64_t size = nbdkit_parse_size (value);

  if (size == -1)
    return -1;
  if (size < REGION_MIN_BLOCK_SIZE || size > REGION_MAX_BLOCK_SIZE || (size & (size - 1)) != 0) {
    nbdkit_error ("mirror-block-size=%s: must be a power of two from 4k to 1M", value);
    return -1;
  }
  mirror.config.block_size = (uint32_t)size;
  return 0;
}

static int
take_over_fd (const char *key, const char *value)
{
  int fd;

  if (nbdkit_parse_int (key, value, &fd) == -1)
    return -1;
  if (receiving_open (&mirror, fd) == 0)
    return 0;
  nbdkit_error ("%s=%s: %m", key, value);
  return -1;
}

static int
mirror_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value)
{
  if (strcmp (key, "mirror-control") == 0)
    return absolute_path (key, value, &mirror.config.control);
  if (strcmp (key, "mirror-direct") == 0)
    return path_or_uri (key, value, &mirror.config.direct);
  if (strcmp (key, "mirror-disk") == 0)
    return absolute_path (key, value, &mirror.config.disk);
  if (strcmp (key, "mirror-uri") == 0) {
    mirror.config.uri = nbdkit_strdup_intern (value);
    return mirror.config.uri != NULL ? 0 : -1;
  }
  if (strcmp (key, "mirror-export") == 0) {
    json_t *text = json_string (value); /* the NBD protocol has no others, and JSON cannot tell */
    json_decref (text);
    if (text == NULL) {
      nbdkit_error ("mirror-export: the name of an export must be UTF-8");
      return -1;
    }
    mirror.config.export = nbdkit_strdup_intern (value);
    return mirror.config.export != NULL ? 0 : -1;
  }
  if (strcmp (key, "mirror-layers") == 0) {
    mirror.config.layers = nbdkit_strdup_intern (value);
    return mirror.config.layers != NULL ? 0 : -1;
  }
  if (strcmp (key, "mirror-disk-format") == 0) {
    mirror.config.format = nbdkit_strdup_intern (value);
    return mirror.config.format != NULL ? 0 : -1;
  }
  if (strcmp (key, "mirror-block-size") == 0)
    return set_block_size (value);
  if (strcmp (key, "mirror-serialized") == 0) {
    int yes = nbdkit_parse_bool (value);
    mirror.config.serialized = yes == 1;
    return yes == -1 ? -1 : 0;
  }
  if (strcmp (key, "mirror-take-over-fd") == 0)
    return take_over_fd (key, value);
  if (strcmp (key, "mirror-state") == 0)
    return absolute_path (key, value, &mirror.persist.path);
  if (strcmp (key, "mirror-state-volatile") == 0) {
    int yes = nbdkit_parse_bool (value);
    mirror.persist.is_volatile = yes == 1;
    return yes == -1 ? -1 : 0;
  }
  return next (nxdata, key, value);
}

#define mirror_config_help                                                                         \
  "mirror-control=<PATH>    (required) Unix socket for workers and nbdmirror(1).\n"                \
  "mirror-uri=<URI>         How a worker reaches this export.\n"                                   \
  "mirror-direct=<FILE>     The file or block device below, or its server, for direct reads.\n"    \
  "mirror-disk=<FILE>       The file or block device that holds the disk, where that is not it.\n" \
  "mirror-disk-format=<FORMAT> The format of that file, for instance qcow2.\n"                     \
  "mirror-layers=<NAME>     The export of the image plugin that tells layers apart.\n"             \
  "mirror-block-size=<SIZE> Tracking granularity, 4k to 1M (default: 4k or more).\n"               \
  "mirror-export=<NAME>     The export that is tracked (default \"\").\n"                          \
  "mirror-serialized=<BOOL> Accept a layer below that serves one request at a time.\n"             \
  "mirror-state=<FILE>      Keep the job and checkpoints in FILE, to survive a crash.\n"           \
  "mirror-state-volatile=<BOOL> Accept a state file on a file system in memory."

static int
mirror_config_complete (nbdkit_next_config_complete *next, nbdkit_backend *nxdata)
{
  if (mirror.config.control == NULL) {
    nbdkit_error ("the mirror filter needs mirror-control=PATH");
    return -1;
  }
  if (mirror.config.layers != NULL && strcmp (mirror.config.layers, mirror.config.export) == 0) {
    nbdkit_error ("mirror-layers: that is the export that is tracked");
    return -1;
  }
  if (mirror.config.disk == NULL && mirror.config.direct != NULL
      && mirror.config.direct[0] == '/') {
    mirror.config.disk = strdup (mirror.config.direct);
    if (mirror.config.disk == NULL) {
      nbdkit_error ("mirror-direct: %m");
      return -1;
    }
  }
  return next (nxdata);
}

static void
forked_in_parent (void)
{
  if (!mirror.serving)
    mirror.socket_owner = 0;
}

__attribute__ ((destructor)) static void
remove_socket (void)
{
  if (mirror.socket_owner == getpid ())
    unlink (mirror.config.control);
}

/* A worker has a connection of its own beside the guest's. */
static bool
thread_model_ok (int thread_model)
{
  if (thread_model == NBDKIT_THREAD_MODEL_PARALLEL)
    return true;
  if (thread_model == NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS)
    nbdkit_error ("the plugin or a filter admits one connection at a time: the guest's would keep"
                  " the mirror's worker out");
  else if (!mirror.config.serialized)
    nbdkit_error ("the plugin or a filter serves one request at a time: a write that is held would"
                  " block reads.  mirror-serialized=yes accepts that, see nbdkit-mirror-filter(1)");
  else
    return true;
  return false;
}

/* While stderr is still the user's: everything that can fail because of what the user gave. */
static int
mirror_get_ready (int thread_model)
{
  char *warning = NULL, *error = NULL;

  if (mirror.loaded > 1) {
    nbdkit_error ("the mirror filter can be used only once in a server");
    return -1;
  }
  if (!thread_model_ok (thread_model))
    return -1;
  if (gate_init (&mirror.gate) == -1) {
    nbdkit_error ("eventfd: %m");
    return -1;
  }
  mirror.pace.wake_fd = mirror.gate.wake_fd;
  if (fence_open (&mirror.fence, mirror.config.control, mirror.config.disk, &warning, &error) == -1)
    goto failed;
  if (warning != NULL)
    nbdkit_error ("%s", warning);
  text_free (warning);
  bool is_draft = mirror.fence.state == FENCE_DRAFT && mirror.fence.record.token[0] != '\0';
  bool never_prepared = is_draft && !mirror.fence.record.prepared;
  if (is_draft && !never_prepared)
    nbdkit_error ("this disk's last server ended while a hand-over was being decided: writes are"
                  " refused until a rollback with token %s",
                  mirror.fence.record.token);
  if (is_draft && receiving_is (&mirror) && !never_prepared) {
    text_error (
        &error,
        "it is to be received, but nobody knows whether it was handed over: start 'nbdmirror"
        " serve' with the same disk and control socket, say 'nbdmirror complete CONTROL"
        " --commit --token %s' if it was, and begin again",
        mirror.fence.record.token);
    goto failed;
  }
  if (mirror.fence.state != FENCE_NONE && !never_prepared && !receiving_is (&mirror))
    gate_fence (&mirror.gate, mirror.fence.record.generation);

  bypass_open (&mirror.bypass, mirror.config.control);
  if (persist_open (&mirror, &error) == -1)
    goto failed;
  if (mirror.bypass.was)
    persist_bypassed (&mirror);
  if (mirror.fence.state != FENCE_COMMITTED && !receiving_is (&mirror))
    handed_over_forget_old (&mirror);
  if (mirror.fence.state == FENCE_COMMITTED && !receiving_is (&mirror))
    handed_over_unseal (&mirror);
  mirror.server = control_server_new (mirror.config.control, PACKAGE_NAME " " PACKAGE_VERSION,
                                      &mirror_server_ops, &mirror, &error);
  if (mirror.server == NULL)
    goto failed;
  /* Only now is it certain that no other server of this disk runs, whose draft that would be. */
  if (never_prepared && fence_remove (&mirror.fence, &error) == -1)
    goto failed;
  /* The state file knows it now. */
  if (mirror.bypass.was && !mirror.bypass.on && bypass_set (&mirror.bypass, false, &error) == -1)
    goto failed;
  mirror.socket_owner = getpid ();
  pthread_atfork (NULL, forked_in_parent, NULL);
  return 0;

failed:
  nbdkit_error ("%s", error);
  text_free (error);
  return -1;
}

static int
mirror_after_fork (nbdkit_backend *backend)
{
  (void)backend;
  mirror.serving = true;
  mirror.socket_owner = getpid ();
  if (persist_start (&mirror) == -1 || mirror_thread_start (&mirror) == -1) {
    nbdkit_error ("pthread_create: %m");
    return -1;
  }
  return 0;
}

static void
mirror_cleanup (nbdkit_backend *backend)
{
  (void)backend;
  mirror_thread_stop (&mirror);
  mirror.socket_owner = 0;
  measurement_end (&mirror);
  handed_over_end (&mirror);
  persist_close (&mirror);
  attachment_free (&mirror);
  gate_destroy (&mirror.gate);
}

static void *
mirror_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname,
             int is_tls)
{
  (void)is_tls;
  bool layers = mirror.config.layers != NULL && strcmp (exportname, mirror.config.layers) == 0;
  bool lend = strcmp (exportname, LEND_EXPORT) == 0;
  if (lend && !atomic_load (&mirror.bypass.on)) {
    nbdkit_error (
        "the image cannot be lent: it is tracked, and nobody has said (mirror-bypass) that"
        " writes may go around this server");
    return NULL;
  }
  if (strcmp (exportname, mirror.config.export) != 0 && !layers && !lend) {
    nbdkit_error ("export \"%s\" is not the one that is tracked: this server has mirror-export=%s",
                  exportname, mirror.config.export);
    return NULL;
  }
  if (next (context, readonly || layers || lend, exportname) == -1)
    return NULL;
  struct handle *h = malloc (sizeof *h);
  if (h == NULL) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  h->shard = atomic_fetch_add (&mirror.next_shard, 1) % GATE_SHARDS;
  return h;
}

static void
mirror_close (void *handle)
{
  free (handle);
}

static int
mirror_prepare (nbdkit_next *next, void *handle, int readonly)
{
  char *error = NULL;

  struct handle *h = handle;

  (void)readonly;
  int64_t size = next->get_size (next);
  if (size == -1)
    return -1;
  h->flushes_all = mirror.persist.open && next->can_multi_conn (next) == 1;
  if (tracker_opened (&mirror.tracker, (uint64_t)size, mirror.config.block_size, &error) == 0)
    return 0;
  nbdkit_error ("%s", error);
  text_free (error);
  return -1;
}

/* What a waiting mutation asks now and then: shall it give up?  nbdkit_nanosleep looks at the
 * server's shutdown and at this connection, and is the one thing that does. */
static int
probe (void *opaque)
{
  (void)opaque;
  if (shutdown_signalled ())
    return ESHUTDOWN;
  return nbdkit_nanosleep (0, 0) == -1 && errno == ESHUTDOWN ? ESHUTDOWN : 0;
}

/* Once for each hand-over: after a rollback the next one is told again. */
static void
log_refusal (void)
{
  struct gate_view gate;

  gate_look (&mirror.gate, &gate);
  if (atomic_exchange (&mirror.refusal_logged, gate.generation + 1) != gate.generation + 1)
    nbdkit_error ("this disk was handed over: writes are refused until a rollback (logged once)");
}

/* A mutation that is under way. */
struct mutation {
  uint64_t offset;
  uint32_t count, flags;
  unsigned half; /* for gate_leave() */
  bool noted;    /* state_leave() is owed */
};

/* 0 if the mutation may go on and is counted, else -1 with *ERR. */
static int
enter (struct handle *h, struct mutation *m, int *err)
{
  int r = gate_enter (&mirror.gate, h->shard, &m->half, probe, NULL);

  if (r == 0 && mirror.persist.open) {
    r = state_enter (&mirror.persist.state, m->offset, m->count, probe, NULL, &m->noted);
    if (r != 0)
      gate_leave (&mirror.gate, h->shard, m->half);
  }
  if (r == 0)
    return 0;
  if (r == EPERM)
    log_refusal ();
  *err = r;
  return -1;
}

static void
leave (struct handle *h, const struct mutation *m)
{
  uint64_t dirtied = tracker_mark (&mirror.tracker, m->offset, m->count);
  if (m->noted)
    state_leave (&mirror.persist.state, m->offset, m->count);
  gate_leave (&mirror.gate, h->shard, m->half);
  uint32_t kind = URGENT_WRITE | ((m->flags & NBDKIT_FLAG_FUA) != 0 ? URGENT_FLUSH : 0);
  pace_after (&mirror.pace, kind, m->offset, m->count, dirtied, probe, NULL);
}

static int
mirror_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct mutation m = { .offset = offset, .count = count, .flags = flags };

  if (enter (h, &m, err) == -1)
    return -1;
  int r = next->pwrite (next, buf, count, offset, flags, err);
  leave (h, &m);
  return r;
}

static int
mirror_trim (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
             int *err)
{
  struct handle *h = handle;
  struct mutation m = { .offset = offset, .count = count, .flags = flags };

  if (enter (h, &m, err) == -1)
    return -1;
  int r = next->trim (next, count, offset, flags, err);
  leave (h, &m);
  return r;
}

static int
mirror_zero (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
             int *err)
{
  struct handle *h = handle;
  struct mutation m = { .offset = offset, .count = count, .flags = flags };

  if (enter (h, &m, err) == -1)
    return -1;
  int r = next->zero (next, count, offset, flags, err);
  leave (h, &m);
  return r;
}

static int
mirror_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  struct handle *h = handle;
  uint32_t begun = mirror.persist.open ? state_flush_begins (&mirror.persist.state) : 0;
  int r = next->flush (next, flags, err);
  if (r == 0 && begun != 0 && h->flushes_all)
    state_flush_ended (&mirror.persist.state, begun);
  pace_after (&mirror.pace, URGENT_FLUSH, 0, 0, 0, probe, NULL);
  return r;
}

static struct nbdkit_filter filter = {
  .name = "mirror",
  .longname = "nbdkit mirror filter",
  .description = "live mirroring of a disk to an NBD destination",
  .load = mirror_load,
  .unload = mirror_unload,
  .config = mirror_config,
  .config_complete = mirror_config_complete,
  .config_help = mirror_config_help,
  .get_ready = mirror_get_ready,
  .after_fork = mirror_after_fork,
  .cleanup = mirror_cleanup,
  .open = mirror_open,
  .close = mirror_close,
  .prepare = mirror_prepare,
  .pwrite = mirror_pwrite,
  .trim = mirror_trim,
  .zero = mirror_zero,
  .flush = mirror_flush,
};

NBDKIT_REGISTER_FILTER (filter)
