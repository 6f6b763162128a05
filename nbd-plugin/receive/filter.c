/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit-mirror-receive-filter: the destination's side.  `nbdmirror receive` puts it in front of
 * the disk.
 *
 * One disk, several exports (control/receive-exports.h lists them): the mirror's, of which one
 * session at a time may write (admission.h), and the guest's, whose first mutation seals the disk:
 * from then on no mirror session writes, so that a late worker cannot write under a running guest.
 *
 * Reads, flushes and block status of a revoked session fail too: it must not believe that it is the
 * one that writes here.  A connection to "mirror" that has not written yet may read at any time,
 * for `verify`: also once the disk is sealed, then read-only.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "nbd-plugin/receive/admission.h"
#include "nbd-plugin/receive/orphan.h"

#define PAUSE_NS 1000000u
#define GUEST_BACK_S 10 /* a guest that has lost its connection comes back by then */

static struct admission admission;
static int notify_fd = -1; /* to the supervisor, see receive-exports.h; -1: nobody supervises */
static int keep_allocated; /* zeroes of the mirror are written, not punched */
static _Atomic bool guest_has_written;
static _Atomic unsigned nr_guests; /* connections */
static _Atomic int64_t guest_left; /* when the last one was closed, seconds of the monotonic clock;
                                      0: there was none */
static bool one_client;            /* nbdkit -s: nobody else can come */
static int backend_fd = -1; /* a pidfd of the process that the plugin is a client of; -1: none */
static int disk_fd = -1;    /* what was prepared, and is locked; -1: not known */
static int start_sealed;    /* the guest's, from the beginning */
static char *disk_path;     /* where the plugin opens it, anew for each connection */

enum kind { GUEST, SESSION, SUPERSEDED, ALONE, SEAL, GIVE_UP };

struct handle {
  enum kind kind;
  _Atomic uint64_t generation; /* SESSION, and ALONE once it has written; else 0 */
  _Atomic bool refusal_logged;
};

static void
receive_load (void)
{
  admission_init (&admission);
}

static void
receive_unload (void)
{
  orphan_watch_stop ();
  admission_destroy (&admission);
  free (disk_path);
}

static int
receive_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key,
                const char *value)
{
  if (strcmp (key, "receive-notify-fd") == 0) {
    if (nbdkit_parse_int (key, value, &notify_fd) == -1)
      return -1;
    one_client = !nbdkit_stdio_safe (); /* can be asked only now */
    if (fcntl (notify_fd, F_SETFD, FD_CLOEXEC) == -1) {
      nbdkit_error ("%s=%s: %m", key, value);
      return -1;
    }
    return 0;
  }
  if (strcmp (key, "receive-disk-fd") == 0) {
    if (nbdkit_parse_int (key, value, &disk_fd) == -1)
      return -1;
    if (fcntl (disk_fd, F_SETFD, FD_CLOEXEC) == -1) {
      nbdkit_error ("%s=%s: %m", key, value);
      return -1;
    }
    return 0;
  }
  if (strcmp (key, "receive-backend-fd") == 0) {
    if (nbdkit_parse_int (key, value, &backend_fd) == -1)
      return -1;
    if (fcntl (backend_fd, F_SETFD, FD_CLOEXEC) == -1) {
      nbdkit_error ("%s=%s: %m", key, value);
      return -1;
    }
    return 0;
  }
  if (strcmp (key, "receive-disk-path") == 0) {
    free (disk_path);
    disk_path = strdup (value);
    return disk_path == NULL ? -1 : 0;
  }
  if (strcmp (key, "receive-sealed") == 0) {
    start_sealed = nbdkit_parse_bool (value);
    return start_sealed == -1 ? -1 : 0;
  }
  if (strcmp (key, "receive-keep-allocated") == 0) {
    keep_allocated = nbdkit_parse_bool (value);
    return keep_allocated == -1 ? -1 : 0;
  }
  return next (nxdata, key, value);
}

/* For `nbdmirror receive --resume`, some day. */
static void
record_seal (void)
{
  struct stat st;

  if (disk_fd == -1 || fstat (disk_fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  if (fsetxattr (disk_fd, RECEIVE_ATTRIBUTE, "1", 1, 0) == -1)
    nbdkit_error ("that this disk was handed over cannot be recorded in its file: %m; another "
                  "server of it will need"
                  " --sealed");
}

#define receive_config_help                                                                        \
  "receive-keep-allocated=<BOOL>  Zeroes that the mirror writes leave no holes.\n"                 \
  "receive-sealed=<BOOL>          Sealed from the beginning.\n"                                    \
  "receive-disk-fd=<FD>, receive-disk-path=<PATH>, receive-notify-fd=<FD>, "                       \
  "receive-backend-fd=<FD>\n"                                                                      \
  "                               For nbdmirror receive, which locks the disk and supervises the " \
  "server."

static int
receive_get_ready (int thread_model)
{
  if (start_sealed) {
    admission_seal (&admission);
    record_seal ();
  }
  if (thread_model == NBDKIT_THREAD_MODEL_PARALLEL)
    return 0;
  nbdkit_error (
      "the mirror-receive filter needs a plugin and filters that serve requests in parallel"
      " (thread model \"parallel\"): a session that waits would block the one it waits for");
  return -1;
}

static int64_t
now_s (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec;
}

static bool
guest_uses_it (void)
{
  if (atomic_load (&nr_guests) > 0)
    return true;
  int64_t left = atomic_load (&guest_left); /* only now: closing a connection sets it first */
  return left != 0 && now_s () - left < GUEST_BACK_S;
}

static int
receive_after_fork (nbdkit_backend *backend)
{
  (void)backend;
  if (notify_fd == -1 || one_client)
    return 0;
  if (orphan_watch_start (notify_fd, backend_fd, guest_uses_it) == 0)
    return 0;
  nbdkit_error ("a thread cannot be started: %m");
  return -1;
}

static void
notify (char note)
{
  ssize_t n = notify_fd != -1 ? write (notify_fd, &note, 1) : 1;

  if (n != 1)
    nbdkit_error ("the process that supervises this server is gone: %m");
}

/* ---- exports ----------------------------------------------------------------------------- */

static int
receive_list_exports (nbdkit_next_list_exports *next, nbdkit_backend *nxdata, int readonly,
                      int is_tls, struct nbdkit_exports *exports)
{
  bool closed = atomic_load (&admission.sealed);

  (void)next, (void)nxdata, (void)readonly, (void)is_tls;
  if (nbdkit_add_export (exports, RECEIVE_MIRROR,
                         closed ? RECEIVE_DESCRIPTION_SEALED : RECEIVE_DESCRIPTION)
      == -1)
    return -1;
  return nbdkit_add_export (exports, "", "for the guest");
}

static const char *
receive_default_export (nbdkit_next_default_export *next, nbdkit_backend *nxdata, int readonly,
                        int is_tls)
{
  (void)next, (void)nxdata, (void)readonly, (void)is_tls;
  return "";
}

/* Sleeps, unless the client has gone or the server stops. */
static int
pause_a_little (void *opaque)
{
  (void)opaque;
  return nbdkit_nanosleep (0, PAUSE_NS) == -1 ? errno : 0;
}

/* Seal, whoever asks first; then wait.  0 or an errno. */
static int
seal (int64_t limit_ms, const char *who)
{
  if (admission_seal (&admission)) {
    record_seal ();
    notify (RECEIVE_NOTE_SEALED);
    nbdkit_debug ("sealed by %s", who);
  } else if (atomic_load (&admission.given_up))
    return ESHUTDOWN;
  return admission_drain (&admission, atomic_load (&admission.generation), limit_ms, pause_a_little,
                          NULL);
}

static int
open_session (struct handle *h, const char *name)
{
  size_t len = strcspn (name, (char[]){ RECEIVE_LAST, '\0' });
  const char *last = name[len] != '\0' ? name + len + 1 : NULL;
  char id[RECEIVE_ID_MAX + 1];
  uint64_t generation;

  if (len == 0 || len > RECEIVE_ID_MAX
      || (last != NULL && (last[0] == '\0' || strlen (last) > RECEIVE_ID_MAX))) {
    nbdkit_error ("a session's ID has 1 to %d characters", RECEIVE_ID_MAX);
    return -1;
  }
  memcpy (id, name, len);
  id[len] = '\0';
  int err = admission_join (&admission, id, last, &generation, pause_a_little, NULL);
  switch (err) {
  case 0:
    atomic_store (&h->generation, generation);
    return 0;
  case EBUSY:
    nbdkit_error (
        "mirror session %s may not write: another mirror has taken the place of its last one", id);
    h->kind = SUPERSEDED;
    return 0;
  case EPERM:
    nbdkit_error ("a mirror session is refused: the disk was handed over to its guest");
    break;
  case ESTALE:
    nbdkit_error ("mirror session %s is refused: a newer one has taken its place", id);
    break;
  case ETIMEDOUT:
    nbdkit_error (
        "mirror session %s is refused: requests of the one before it have not ended in %d s", id,
        ADMISSION_LIMIT_MS / 1000);
    break;
  default:
    nbdkit_error ("mirror session %s: %s", id, strerror (err));
  }
  return -1;
}

static int
open_seal (void)
{
  int err = seal (ADMISSION_LIMIT_MS, "the mirror");

  if (err == 0)
    return 0;
  if (atomic_load (&admission.given_up))
    nbdkit_error ("it is too late to seal: the disk was given up");
  else
    nbdkit_error ("sealed, but requests of the mirror are still in flight: %s", strerror (err));
  return -1;
}

static int
open_give_up (void)
{
  if (notify_fd != -1)
    return 0;
  nbdkit_error ("nobody supervises this server: end it by hand");
  return -1;
}

/* Once it is open: the disk may be gone in a moment. */
static int
give_up (void)
{
  if (!admission_give_up (&admission)) {
    nbdkit_error ("it is too late to give up: the disk was handed over to its guest");
    return -1;
  }
  notify (RECEIVE_NOTE_GIVEN_UP);
  return 0;
}

static int
open_as (struct handle *h, const char *name)
{
  size_t prefix = strlen (RECEIVE_SESSION_PREFIX);

  if (name[0] == '\0')
    h->kind = GUEST;
  else if (strcmp (name, RECEIVE_MIRROR) == 0)
    h->kind = ALONE;
  else if (strcmp (name, RECEIVE_SEAL) == 0) {
    h->kind = SEAL;
    return open_seal ();
  } else if (strcmp (name, RECEIVE_GIVE_UP) == 0) {
    h->kind = GIVE_UP;
    return open_give_up ();
  } else if (strncmp (name, RECEIVE_SESSION_PREFIX, prefix) == 0) {
    h->kind = SESSION;
    return open_session (h, name + prefix);
  } else {
    nbdkit_error ("no export \"%s\": \"" RECEIVE_MIRROR "\" is the mirror's, \"\" the guest's",
                  name);
    return -1;
  }
  return 0;
}

/* The path must not lead to somebody else's file: that one is neither locked nor ours to write. */
static int
check_disk (void)
{
  struct stat ours, its;

  if (disk_fd == -1 || disk_path == NULL)
    return 0;
  if (fstat (disk_fd, &ours) == 0 && stat (disk_path, &its) == 0
      && (S_ISBLK (ours.st_mode) ? S_ISBLK (its.st_mode) && its.st_rdev == ours.st_rdev
                                 : its.st_dev == ours.st_dev && its.st_ino == ours.st_ino))
    return 0;
  nbdkit_error ("%s: this is another file now: it is not served", disk_path);
  return -1;
}

static void *
receive_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname,
              int is_tls)
{
  (void)is_tls;
  struct handle *h = calloc (1, sizeof *h);
  if (h == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  if (open_as (h, exportname) == -1 || next (context, readonly, "") == -1 || check_disk () == -1
      || (h->kind == GIVE_UP && give_up () == -1)) {
    free (h);
    return NULL;
  }
  if (h->kind == GUEST)
    atomic_fetch_add (&nr_guests, 1);
  return h;
}

static void
receive_close (void *handle)
{
  struct handle *h = handle;

  if (h->kind == GUEST) {
    atomic_store (&guest_left, now_s ());
    atomic_fetch_sub (&nr_guests, 1);
  }
  free (handle);
}

static int
receive_can_write (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  if (h->kind == SEAL || h->kind == GIVE_UP || h->kind == SUPERSEDED
      || (h->kind == ALONE && atomic_load (&admission.sealed)))
    return 0;
  return next->can_write (next);
}

/* Two connections to "mirror" would revoke each other. */
static int
receive_can_multi_conn (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->kind == ALONE ? 0 : next->can_multi_conn (next);
}

/* ---- requests ---------------------------------------------------------------------------- */

static int
refuse (struct handle *h, int error, int *err)
{
  if (!atomic_exchange (&h->refusal_logged, true))
    nbdkit_error ("a request of a mirror session is refused: %s (logged once a connection)",
                  error == EPERM       ? "the disk was handed over to its guest"
                  : error == ESHUTDOWN ? "a newer session has taken its place"
                                       : strerror (error));
  *err = error;
  return -1;
}

/* A mutation begins: 0, or -1 with *ERR. */
static int
enter (struct handle *h, int *err)
{
  int error = 0;

  if (h->kind == GUEST) {
    /* Without limit, as its disk is: an error would be the guest's, and nothing is wrong with it.
     */
    if (!admission_is_over (&admission))
      error = seal (-1, "the guest's first write");
    if (error == 0 && !atomic_load (&guest_has_written)
        && !atomic_exchange (&guest_has_written, true))
      notify (RECEIVE_NOTE_WRITTEN);
    if (error != 0)
      *err = error;
    return error != 0 ? -1 : 0;
  }
  if (h->kind == ALONE)
    error = admission_join_alone (&admission, &h->generation, pause_a_little, NULL);
  if (error == 0)
    error = admission_enter (&admission, atomic_load (&h->generation));
  return error == 0 ? 0 : refuse (h, error, err);
}

static void
leave (struct handle *h)
{
  if (h->kind != GUEST)
    admission_leave (&admission);
}

/* A request that changes nothing: 0, or -1 with *ERR. */
static int
check (struct handle *h, int *err)
{
  uint64_t generation = atomic_load (&h->generation);
  int error = generation != 0 ? admission_check (&admission, generation) : 0;

  return error == 0 ? 0 : refuse (h, error, err);
}

static int
receive_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset,
               uint32_t flags, int *err)
{
  return check (handle, err) == -1 ? -1 : next->pread (next, buf, count, offset, flags, err);
}

static int
receive_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  return check (handle, err) == -1 ? -1 : next->flush (next, flags, err);
}

static int
receive_extents (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                 struct nbdkit_extents *extents, int *err)
{
  return check (handle, err) == -1 ? -1 : next->extents (next, count, offset, flags, extents, err);
}

static int
receive_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset,
                uint32_t flags, int *err)
{
  if (enter (handle, err) == -1)
    return -1;
  int r = next->pwrite (next, buf, count, offset, flags, err);
  leave (handle);
  return r;
}

static int
receive_trim (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              int *err)
{
  if (enter (handle, err) == -1)
    return -1;
  int r = next->trim (next, count, offset, flags, err);
  leave (handle);
  return r;
}

static int
receive_zero (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              int *err)
{
  struct handle *h = handle;

  if (enter (h, err) == -1)
    return -1;
  if (keep_allocated && h->kind != GUEST)
    flags &= ~(uint32_t)NBDKIT_FLAG_MAY_TRIM;
  int r = next->zero (next, count, offset, flags, err);
  leave (h);
  return r;
}

static struct nbdkit_filter filter = {
  .name = "mirror-receive",
  .longname = "nbdkit mirror-receive filter",
  .description = "the destination of a live mirror: one session at a time, none beside the guest",
  .load = receive_load,
  .unload = receive_unload,
  .config = receive_config,
  .config_help = receive_config_help,
  .get_ready = receive_get_ready,
  .after_fork = receive_after_fork,
  .list_exports = receive_list_exports,
  .default_export = receive_default_export,
  .open = receive_open,
  .close = receive_close,
  .can_write = receive_can_write,
  .can_multi_conn = receive_can_multi_conn,
  .pread = receive_pread,
  .flush = receive_flush,
  .extents = receive_extents,
  .pwrite = receive_pwrite,
  .trim = receive_trim,
  .zero = receive_zero,
};

NBDKIT_REGISTER_FILTER (filter)
