/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An export that tells which parts of a disk lie in the top layer of its image, and which in a
 * layer below that.  `qemu-nbd --allocation-depth` tells it in a meta context of QEMU's, which
 * nbdkit cannot pass on.  So nbd-plugin/image/ serves the same disk a second time, read-only, and
 * there the flags of "base:allocation" mean:
 *
 *   hole and zero   reads as zero, and the top layer or none says so
 *   zero            the same, and takes up room
 *   hole            a lower layer holds it, whatever it reads as
 *   neither         the top layer holds data
 *
 * A server may serve its disk under any name, and there a hole means something else.  So the
 * export's description has to say what it is.
 */

#ifndef NBDMIRROR_CONTROL_LAYERS_EXPORT_H
#define NBDMIRROR_CONTROL_LAYERS_EXPORT_H

/* The name is the disk's with this behind it, where `nbdmirror serve` chooses it. */
#define LAYERS_SUFFIX "@layers"
#define LAYERS_DESCRIPTION "nbdmirror layers 1"

#endif
