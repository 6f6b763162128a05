/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An export that lends an image.  QEMU locks an image in a format like qcow2, and so it must not be
 * open in a guest's QEMU and behind a server at the same time.  nbd-plugin/image/ lets go of it for
 * whoever opens this export: everything is made durable, and its qemu-nbd has ended in order when
 * the export opens.  Meanwhile the requests of other clients wait.  When the export is closed, by
 * the death of its client as well, the image is opened again at the next request.
 *
 * A server of `nbdmirror receive` lends its image once it is sealed, and a tracked one while writes
 * may go around it (mirror-bypass).
 */

#ifndef NBDMIRROR_CONTROL_LEND_EXPORT_H
#define NBDMIRROR_CONTROL_LEND_EXPORT_H

#define LEND_EXPORT "image@lend"

/* Its description is this and the image's format. */
#define LEND_DESCRIPTION "nbdmirror lend 1 "

#endif
