/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The tracker (mirror/job/tracker.h) of a disk whose guest runs already, of any format: QEMU's own
 * dirty bitmaps tell the changes, and its `stop` is the gate.
 */

#ifndef NBDMIRROR_CMD_TRACKED_QEMU_TRACKER_H
#define NBDMIRROR_CMD_TRACKED_QEMU_TRACKER_H

#include "cmd/migrate/machine.h"
#include "cmd/tracked/bitmaps.h"
#include "cmd/tracked/guardian.h"
#include "mirror/job/tracker.h"

struct qemu_tracker {
  const char *node; /* borrowed, as is vm.path */
  struct guardian guardian;
  struct journal quiet;
  struct machine vm;
  struct bitmaps bitmaps;
  char *device, *backend; /* whose node it is, as in a struct guest_disk */
  char *uri;              /* the source to copy from */
  uint64_t size;          /* bytes */
  bool made;              /* there is something in QEMU to be removed */
  bool watched;           /* by the guardian: the guest is held */
  bool stopped;           /* by us */
};

/* Look at the disk whose node is NODE, of the QEMU whose monitor is at QMP; remove what an earlier
 * job has left there, and export it at T->uri.  DEST is refused if it is a local file that QEMU has
 * open.  To be called before this process has a thread.
 * 0, or -1 with *ERROR (text_free()); *REFUSED tells a refusal from a failure.  qemu_tracker_end()
 * is called in either case. */
int qemu_tracker_begin (struct qemu_tracker *t, const char *qmp, const char *node, const char *dest,
                        bool *refused, char **error);

/* Its functions, for copy_options. */
struct tracker qemu_tracker_functions (struct qemu_tracker *t);

/* Remove all that was made in QEMU.  0, or -1 with *ERROR. */
int qemu_tracker_end (struct qemu_tracker *t, char **error);

#endif
