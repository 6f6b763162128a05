/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is looked at before anything is begun.
 *
 * The destination must not start its guest by itself, so one that was started without -S is
 * refused.  QMP does not tell that.  The arguments of the process do, where they can be seen.
 * Where they cannot (a tunnel, libvirt) QEMU is told to `stop`: while it waits for a migration that
 * does the same as -S, both set its `autostart` to 0.
 */

#include "config.h"

#include <string.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "cmd/migrate/plan.h"
#include "control/name.h"
#include "mirror/endpoint/uri.h"

/* ---- which of QEMU's disks is which ------------------------------------------------------------
 */

/* Is FILE, QEMU's name of a node, the export that URI leads to?  QEMU encodes nothing in the names
 * that it makes: the path of the socket comes last, as it is. */
static bool
same_export (const char *file, const char *uri_text)
{
  struct uri *uri = uri_read (uri_text, NULL);
  const char *ours = uri != NULL ? uri_parameter (uri, "socket") : NULL;
  const char *its = strncmp (file, "nbd+unix:", 9) == 0 ? strstr (file, "?socket=") : NULL;
  bool same = ours != NULL && its != NULL ? strcmp (its + strlen ("?socket="), ours) == 0
                                          : strcmp (file, uri_text) == 0;

  uri_free (uri);
  return same;
}

static const char *
inserted_text (const json_t *device, const char *key)
{
  return json_string_value (json_object_get (json_object_get (device, "inserted"), key));
}

/* The device of the list whose node leads to URI.  *HIDDEN: there is one whose node cannot be told.
 */
static json_t *
find_device (json_t *devices, const char *uri, bool *hidden)
{
  json_t *device;
  size_t i;

  json_array_foreach (devices, i, device)
  {
    const char *file = inserted_text (device, "file");

    if (file != NULL && same_export (file, uri))
      return device;
    if (file != NULL && strncmp (file, "json:", 5) == 0 && strstr (file, "nbd") != NULL)
      *hidden = true;
  }
  return NULL;
}

static json_t *
find_by_qdev (json_t *devices, const char *qdev)
{
  json_t *device;
  size_t i;

  json_array_foreach (devices, i, device)
  {
    const char *its = json_string_value (json_object_get (device, "qdev"));

    if (its != NULL && strcmp (its, qdev) == 0)
      return device;
  }
  return NULL;
}

/* The destination's disk in the same place of the machine must have the size of DISK. */
static int
check_dest_size (struct migrate *m, const struct disk *d, const json_t *device, json_t *at_dest)
{
  const char *qdev = json_string_value (json_object_get (device, "qdev"));
  json_t *other = qdev != NULL ? find_by_qdev (at_dest, qdev) : NULL;
  json_t *size = json_object_get (json_object_get (json_object_get (other, "inserted"), "image"),
                                  "virtual-size");
  double want = status_number (d->status, "size", -1);

  if (qdev != NULL && other == NULL)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "the destination QEMU has no disk at %s, where %s is at the source", qdev,
                         d->control);
  if (!json_is_integer (size) || want < 0)
    return 0;
  if (json_number_value (size) < want)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "%s: the destination QEMU's disk is smaller: %.0f bytes, not %.0f",
                         d->control, json_number_value (size), want);
  if (json_number_value (size) > want)
    cmd_warning ("%s: the destination QEMU's disk is larger: %.0f bytes, not %.0f", d->control,
                 json_number_value (size), want);
  return 0;
}

/* The device of the list that uses NODE. */
static json_t *
find_by_node (json_t *devices, const char *node)
{
  json_t *device;
  size_t i;

  json_array_foreach (devices, i, device)
  {
    const char *its = inserted_text (device, "node-name");

    if (its != NULL && strcmp (its, node) == 0)
      return device;
  }
  return NULL;
}

/* A disk that the source QEMU has open by itself: it must be this QEMU that the disk's worker
 * asks. */
static int
check_own_disk (struct migrate *m, struct disk *d, json_t *at_source, json_t *at_dest)
{
  CLEANUP_TEXT char *monitor = NULL;
  const struct peer *source = &m->machines.source.peer;
  const char *node = "";
  struct peer its = { .is_qemu = false };

  control_name_split (d->control, &monitor, &node);
  CLEANUP_FD int sock = fd_connect (monitor);
  if (sock != -1)
    peer_look (sock, &its);
  if (source->is_qemu && its.is_qemu && source->pid != its.pid)
    return journal_fail (&m->journal, EXIT_REFUSED, "%s: this is the monitor of another QEMU",
                         d->control);
  json_t *device = find_by_node (at_source, node);
  if (device == NULL)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "%s: no disk of the source QEMU has a node '%s'", d->control, node);
  json_object_set_new (device, "is-moved", json_true ());
  json_t *size = json_object_get (json_object_get (json_object_get (device, "inserted"), "image"),
                                  "virtual-size");
  if (status_number (d->status, "size", -1) < 0 && size != NULL)
    json_object_set (d->status, "size", size);
  return check_dest_size (m, d, device, at_dest);
}

static int
check_disk (struct migrate *m, struct disk *d, json_t *at_source, json_t *at_dest)
{
  if (control_is_of_qemu (d->control))
    return check_own_disk (m, d, at_source, at_dest);
  const char *uri = status_text (d->status, "uri");
  bool hidden = uri == NULL;
  json_t *device = uri != NULL ? find_device (at_source, uri, &hidden) : NULL;

  if (device == NULL && hidden) {
    cmd_warning ("%s: it cannot be seen whether this is a disk of the source QEMU", d->control);
    return 0;
  }
  if (device == NULL)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "%s: no disk of the source QEMU uses its export, %s"
                         " (--no-disk-check, if you know better)",
                         d->control, uri);
  const char *driver = inserted_text (device, "drv");
  if (driver != NULL && strcmp (driver, "nbd") != 0 && strcmp (driver, "raw") != 0)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "%s: QEMU has a %s layer on it, which would write while it is handed"
                         " over: use the export as a raw disk",
                         d->control, driver);
  json_object_set_new (device, "is-moved", json_true ());
  return check_dest_size (m, d, device, at_dest);
}

/* A writable disk that nobody moves must be on shared storage. */
static void
warn_others (json_t *devices)
{
  json_t *device;
  size_t i;

  json_array_foreach (devices, i, device)
  {
    const json_t *inserted = json_object_get (device, "inserted");
    if (inserted != NULL && json_is_false (json_object_get (inserted, "ro"))
        && json_object_get (device, "is-moved") == NULL)
      cmd_warning (
          "the source QEMU's disk %s is not moved: the destination needs the very same one",
          inserted_text (device, "file"));
  }
}

static int
check_disks (struct migrate *m)
{
  json_t *at_source = NULL, *at_dest = NULL;
  char *error = NULL;
  int r = 0;

  if (machine_call (&m->machines.source, "query-block", NULL, &at_source, NULL, &error) == -1
      || machine_call (&m->machines.dest, "query-block", NULL, &at_dest, NULL, &error) == -1)
    r = journal_fail_with (&m->journal, EXIT_ERROR, error);
  for (unsigned i = 0; i < m->disks.nr && r == 0; i++)
    r = check_disk (m, &m->disks.disk[i], at_source, at_dest);
  if (r == 0)
    warn_others (at_source);
  json_decref (at_source);
  json_decref (at_dest);
  return r;
}

/* ---- the two machines ---------------------------------------------------------------------------
 */

static int
check_source (struct migrate *m)
{
  char *error = NULL;

  if (machine_connect (&m->machines.source, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  char status[32];
  machine_status (&m->machines.source, status);
  if (strcmp (status, "running") != 0)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "the source VM is not running, its state is '%s'", status);
  char migration[32];
  machine_migration (&m->machines.source, migration);
  if (migration_is_active (migration))
    return journal_fail (&m->journal, EXIT_REFUSED, "the source VM is being migrated already (%s)",
                         migration);
  return 0;
}

static int
check_dest (struct migrate *m)
{
  char *error = NULL;

  if (machine_connect (&m->machines.dest, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  char status[32];
  machine_status (&m->machines.dest, status);
  if (strcmp (status, "inmigrate") != 0)
    return journal_fail (&m->journal, EXIT_REFUSED,
                         "the destination VM does not wait for a migration, its state is '%s':"
                         " start its QEMU with -incoming defer -S",
                         status);
  if (m->machines.dest.peer.start == PEER_START_RUNS)
    return journal_fail (
        &m->journal, EXIT_REFUSED,
        "the destination QEMU was started without -S, so it would start the guest by"
        " itself: start it anew with -incoming defer -S");
  journal_text (
      &m->journal, "destination-start",
      m->machines.dest.peer.start == PEER_START_PAUSED
          ? "-S"
          : "it cannot be seen whether it has -S: it is told to stop, which means the same");
  if (!m->options.dry_run
      && machine_call (&m->machines.dest, "stop", NULL, NULL, NULL, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  return 0;
}

/* With -incoming defer the destination listens only now.  With -incoming URI it does so already:
 * query-migrate does not tell that in every version of QEMU, but the refusal does. */
static int
make_dest_listen (struct migrate *m)
{
  const char *uri
      = m->options.incoming_uri != NULL ? m->options.incoming_uri : m->options.memory_uri;
  char migration[32];
  char *error = NULL;
  bool refused;

  machine_migration (&m->machines.dest, migration);
  if (strcmp (migration, "none") != 0
      || machine_call (&m->machines.dest, "migrate-incoming", json_pack ("{s:s}", "uri", uri), NULL,
                       &refused, &error)
             == 0)
    return 0;
  if (!refused || strstr (error, "already been started") == NULL)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  text_free (error);
  return 0;
}

/* Post-copy would start the destination before the disks are handed over. */
static int
set_capabilities (struct migrate *m)
{
  const char *converge = m->options.auto_converge ? "auto-converge" : NULL;
  struct machine *source = &m->machines.source;
  char *error = NULL;

  if (machine_set_capabilities (source, &error, "pause-before-switchover", 1, "postcopy-ram", 0,
                                "events", 1, converge, 1, NULL)
      == -1)
    return journal_fail_with (&m->journal, EXIT_REFUSED, error);
  notes_settings (m->notes, source->old_caps, NULL);
  return machine_set_capabilities (&m->machines.dest, &error, "late-block-activate", 1,
                                   "postcopy-ram", 0, "events", 1, NULL)
                 == -1
             ? journal_fail_with (&m->journal, EXIT_REFUSED, error)
             : 0;
}

int
migrate_check_machines (struct migrate *m)
{
  return check_source (m) == -1 || check_dest (m) == -1 ? -1 : 0;
}

int
migrate_check_disks (struct migrate *m)
{
  if (disks_connect (&m->disks) == -1 || disks_check (&m->disks, m->options.resume) == -1)
    return -1;
  if (!m->options.no_disk_check && check_disks (m) == -1)
    return -1;
  return set_capabilities (m) == -1 ? -1 : m->options.dry_run ? 0 : make_dest_listen (m);
}
