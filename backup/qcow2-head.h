/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the head of a qcow2 file says of other files.  Whoever opens it opens those as well: so a
 * repository that somebody else has written may name any file of this host, or a server.  They are
 * looked at before QEMU is given the file.
 *
 * The layout is that of QEMU's docs/interop/qcow2.txt.
 */

#ifndef NBDMIRROR_BACKUP_QCOW2_HEAD_H
#define NBDMIRROR_BACKUP_QCOW2_HEAD_H

#define QCOW2_NAME_MAX 1024 /* bytes of a backing file's name, without the NUL */

/* The file of the directory DIR (a descriptor), which must be a regular one and no symbolic link.
 * 0 with the name of its backing file in BACKING, "" if it has none.  -1 with *ERROR
 * (base/text.h): it is no qcow2 file, its data lie in another file, or the format of its backing
 * file is not recorded as qcow2. */
int qcow2_head_read (int dir, const char *file, char backing[QCOW2_NAME_MAX + 1], char **error);

#endif
