/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit's callbacks of the receive filter.  See filter.h for what it is.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "nbd-plugin/receive/filter.h"
#include "nbd-plugin/receive/orphan.h"

#define GUEST_BACK_MS (10 * MS_PER_S) /* a guest that lost its connection comes back by then */

static struct receive receive = {
  .config = { .notify_fd = -1, .disk_fd = -1, .take_over_fd = -1 },
  .record_lock = PTHREAD_MUTEX_INITIALIZER,
};

static void
receive_load (void)
{
  admission_init (&receive.admission);
  standing_init (&receive.standing, &receive.admission);
  hand_over_init (&receive.hand_over);
}

static void
receive_unload (void)
{
  orphan_watch_stop ();
  packed_unload ();
  standing_unload (&receive.standing);
  hand_over_destroy (&receive.hand_over);
  admission_destroy (&receive.admission);
  free (receive.config.disk_path);
}

static int
receive_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key,
                const char *value)
{
  int taken = receive_parameter (&receive.config, key, value);

  if (taken == 0)
    return next (nxdata, key, value);
  return taken == 1 ? 0 : -1;
}

/* To record it again would flush the disk, for which the supervisor does not wait. */
static bool
seal_is_recorded (void)
{
  char value;

  return fgetxattr (receive.config.disk_fd, RECEIVE_ATTRIBUTE, &value, 1) == 1 && value == '1';
}

static int
receive_get_ready (int thread_model)
{
  int page = receive.config.take_over_fd;

  if (page != -1 && (receive.hand_over.page = take_over_map (page)) == NULL) {
    nbdkit_error ("receive-take-over-fd=%d: %m", page);
    return -1;
  }
  standing_load (&receive.standing, receive.config.disk_fd);
  if (receive.config.sealed) {
    admission_seal (&receive.admission);
    /* No request has come yet. */
    admission_drain (&receive.admission, atomic_load (&receive.admission.generation), 0,
                     export_pause, NULL);
    atomic_store (&receive.seal_recorded, true);
    if (!seal_is_recorded ())
      export_record_seal (&receive);
  }
  if (thread_model == NBDKIT_THREAD_MODEL_PARALLEL)
    return 0;
  nbdkit_error (
      "the mirror-receive filter needs a plugin and filters that serve requests in parallel"
      " (thread model \"parallel\"): a session that waits would block the one it waits for");
  return -1;
}

static bool
guest_uses_it (void)
{
  if (atomic_load (&receive.nr_guests) > 0)
    return true;
  uint64_t left
      = atomic_load (&receive.guest_left_ms); /* only now: closing a connection sets it first */
  return left != 0 && clock_ms () - left < GUEST_BACK_MS;
}

static int
receive_after_fork (nbdkit_backend *backend)
{
  (void)backend;
  if (receive.config.notify_fd == -1 || receive.config.one_client)
    return 0;
  if (orphan_watch_start (receive.config.notify_fd, guest_uses_it) == 0)
    return 0;
  nbdkit_error ("a thread cannot be started: %m");
  return -1;
}

static int
receive_list_exports (nbdkit_next_list_exports *next, nbdkit_backend *nxdata, int readonly,
                      int is_tls, struct nbdkit_exports *exports)
{
  bool closed = atomic_load (&receive.admission.sealed);
  char uuid[UUID_TEXT_BYTES], standing[sizeof RECEIVE_DESCRIPTION_STANDING + UUID_TEXT_BYTES];

  (void)next, (void)nxdata, (void)readonly, (void)is_tls;
  standing_look (&receive.standing, uuid);
  snprintf (standing, sizeof standing, "%s%s", RECEIVE_DESCRIPTION_STANDING,
            uuid[0] != '\0' ? uuid : RECEIVE_STANDING_NOWHERE);
  if (nbdkit_add_export (exports, RECEIVE_MIRROR,
                         closed ? RECEIVE_DESCRIPTION_SEALED : RECEIVE_DESCRIPTION)
          == -1
      || nbdkit_add_export (exports, RECEIVE_PACKED, RECEIVE_DESCRIPTION_PACKED) == -1
      || nbdkit_add_export (exports, RECEIVE_STANDING, standing) == -1
      || (hand_over_records (&receive.hand_over)
          && nbdkit_add_export (exports, RECEIVE_RETURN, RECEIVE_DESCRIPTION_RETURN) == -1))
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
  if (export_is_packed (exportname) && (h->packed = packed_new ()) == NULL) {
    nbdkit_error ("%m");
    free (h);
    return NULL;
  }
  if (export_open (&receive, h, exportname) == -1
      || next (context, readonly, h->kind == EXPORT_LEND ? exportname : "") == -1
      || export_check_disk (&receive) == -1
      || (h->kind == EXPORT_GIVE_UP && export_give_up (&receive) == -1)) {
    packed_free (h->packed);
    free (h);
    return NULL;
  }
  if (h->kind == EXPORT_GUEST)
    atomic_fetch_add (&receive.nr_guests, 1);
  return h;
}

static void
receive_close (void *handle)
{
  struct handle *h = handle;

  if (h->kind == EXPORT_GUEST) {
    atomic_store (&receive.guest_left_ms, clock_ms ());
    atomic_fetch_sub (&receive.nr_guests, 1);
  }
  packed_free (h->packed);
  free (handle);
}

static int64_t
receive_get_size (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;
  int64_t size = next->get_size (next);

  return h->packed != NULL && size != -1 ? packed_size (h->packed, size) : size;
}

static int
receive_can_write (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  if (h->kind == EXPORT_SEAL || h->kind == EXPORT_CHECKPOINT || h->kind == EXPORT_GIVE_UP
      || h->kind == EXPORT_SUPERSEDED || h->kind == EXPORT_LEND
      || (h->kind == EXPORT_ALONE && atomic_load (&receive.admission.sealed)))
    return 0;
  return next->can_write (next);
}

/* Two connections to "mirror" would revoke each other. */
static int
receive_can_multi_conn (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->kind == EXPORT_ALONE ? 0 : next->can_multi_conn (next);
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

static int
refuse_guest (int *err)
{
  if (!atomic_exchange (&receive.refusal_logged, true))
    nbdkit_error ("this disk was handed over, and is on its way back: the guest's writes are"
                  " refused until the mirror hands it over (logged once)");
  *err = EPERM;
  return -1;
}

/* A mutation begins: 0, or -1 with *ERR. */
static int
enter (struct handle *h, uint32_t count, uint64_t offset, int *err)
{
  int error = 0;

  if (h->packed != NULL && !packed_in_disk (h->packed, count, offset, err))
    return -1;

  if (h->kind == EXPORT_GUEST) {
    if (receive.config.fenced && !atomic_load (&receive.admission.sealed))
      return refuse_guest (err);
    /* Without limit, as its disk is: an error would be the guest's, and nothing is wrong with it.
     */
    /* Who has sealed may have gone before that was recorded. */
    if (!admission_is_over (&receive.admission) || !atomic_load (&receive.seal_recorded))
      error = export_seal (&receive, -1, "the guest's first write");
    if (error == 0)
      error = hand_over_guest_mutates (&receive.hand_over, &receive.admission, export_pause, NULL);
    if (error == 0 && !atomic_load (&receive.guest_has_written)
        && !atomic_exchange (&receive.guest_has_written, true))
      export_notify (&receive, RECEIVE_NOTE_WRITTEN);
    if (error == 0)
      error = standing_mutates (&receive.standing, 0);
    if (error != 0)
      *err = error;
    return error != 0 ? -1 : 0;
  }
  if (h->kind == EXPORT_ALONE)
    error = admission_join_alone (&receive.admission, &h->generation, export_pause, NULL);
  if (error == 0 && h->packed != NULL && packed_is_broken (h->packed))
    error = ESHUTDOWN;
  if (error == 0)
    error = admission_enter (&receive.admission, atomic_load (&h->generation));
  if (error != 0)
    return refuse (h, error, err);
  error = standing_mutates (&receive.standing, atomic_load (&h->generation));
  if (error == 0)
    return 0;
  admission_leave (&receive.admission);
  *err = error;
  return -1;
}

static void
leave (struct handle *h)
{
  if (h->kind != EXPORT_GUEST)
    admission_leave (&receive.admission);
}

/* A request that changes nothing: 0, or -1 with *ERR. */
static int
check (struct handle *h, uint32_t count, uint64_t offset, int *err)
{
  if (h->packed != NULL && !packed_in_disk (h->packed, count, offset, err))
    return -1;

  uint64_t generation = atomic_load (&h->generation);
  int error = generation != 0 ? admission_check (&receive.admission, generation) : 0;
  if (error == 0 && h->packed != NULL && packed_is_broken (h->packed))
    error = ESHUTDOWN;

  return error == 0 ? 0 : refuse (h, error, err);
}

static int
receive_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset,
               uint32_t flags, int *err)
{
  return check (handle, count, offset, err) == -1
             ? -1
             : next->pread (next, buf, count, offset, flags, err);
}

static int
receive_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  return check (handle, 0, 0, err) == -1 ? -1 : next->flush (next, flags, err);
}

static int
receive_extents (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                 struct nbdkit_extents *extents, int *err)
{
  return check (handle, count, offset, err) == -1
             ? -1
             : next->extents (next, count, offset, flags, extents, err);
}

static int
receive_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset,
                uint32_t flags, int *err)
{
  struct handle *h = handle;
  bool is_pack = h->packed != NULL && offset >= PACK_OFFSET;

  /* Where the content of a pack goes is looked at once it is unpacked. */
  if (enter (h, is_pack ? 0 : count, is_pack ? 0 : offset, err) == -1)
    return -1;
  int r = is_pack ? packed_write (h->packed, next, buf, count, offset, flags, err)
                  : next->pwrite (next, buf, count, offset, flags, err);
  leave (h);
  return r;
}

/* To be passed on it must lie in the disk, as all else. */
static int
receive_cache (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               int *err)
{
  return check (handle, count, offset, err) == -1 ? -1
                                                  : next->cache (next, count, offset, flags, err);
}

static int
receive_trim (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              int *err)
{
  if (enter (handle, count, offset, err) == -1)
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

  if (enter (h, count, offset, err) == -1)
    return -1;
  if (receive.config.keep_allocated && h->kind != EXPORT_GUEST)
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
  .config_help = receive_help,
  .get_ready = receive_get_ready,
  .after_fork = receive_after_fork,
  .list_exports = receive_list_exports,
  .default_export = receive_default_export,
  .open = receive_open,
  .close = receive_close,
  .can_write = receive_can_write,
  .can_multi_conn = receive_can_multi_conn,
  .get_size = receive_get_size,
  .pread = receive_pread,
  .flush = receive_flush,
  .extents = receive_extents,
  .pwrite = receive_pwrite,
  .trim = receive_trim,
  .zero = receive_zero,
  .cache = receive_cache,
};

NBDKIT_REGISTER_FILTER (filter)
