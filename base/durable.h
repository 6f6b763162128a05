/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Small files that must survive a crash of the host.  Each path is absolute.  All return 0, or -1
 * with *ERROR (text_free()), which names the file or the folder.  They may be called from any
 * thread.
 */

#ifndef NBDMIRROR_BASE_DURABLE_H
#define NBDMIRROR_BASE_DURABLE_H

/* The file PATH has the contents TEXT.  Whatever happens, it has either these or those that it had
 * before, or is missing as before.  Only this user may read it.  A process that is killed meanwhile
 * may leave PATH with this behind it: */
#define DURABLE_DRAFT ".new"
int durable_replace (const char *path, const char *text, char **error);

/* The file PATH is gone.  It is no error if there was none. */
int durable_remove (const char *path, char **error);

/* What was created, renamed and removed in the folder of PATH is durable. */
int durable_folder (const char *path, char **error);

#endif
