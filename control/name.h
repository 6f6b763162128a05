/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How a control socket is named.  A disk that is served by us has one of its server's, named by its
 * path.  A disk that QEMU has open by itself, qmp:MONITOR/NODE, has one only while a worker mirrors
 * it: the worker listens beside the monitor's socket, at MONITOR.NODE.nbdmirror.
 */

#ifndef NBDMIRROR_CONTROL_NAME_H
#define NBDMIRROR_CONTROL_NAME_H

#include <stdbool.h>

/* Is NAME a disk that QEMU has open by itself? */
bool control_is_of_qemu (const char *name);

/* Cut NAME, qmp:MONITOR/NODE, in two: *MONITOR for text_free(), *NODE within NAME.  False, with
 * neither, if it has another form. */
bool control_name_split (const char *name, char **monitor, const char **node);

/* The path of the socket that NAME stands for, for text_free(). */
char *control_name_path (const char *name);

#endif
