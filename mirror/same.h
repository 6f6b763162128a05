/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Do two endpoint names mean the same place?  Copying a disk onto itself helps nobody.
 */

#ifndef NBDMIRROR_SAME_H
#define NBDMIRROR_SAME_H

#include <stdbool.h>

/* The same text, or two paths of the same file or block device.  Different URIs of one export are not
 * recognised.  Either may be NULL: then no. */
bool same_place (const char *a, const char *b);

#endif
