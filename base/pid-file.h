/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Files in which a server writes its process id.
 */

#ifndef NBDMIRROR_BASE_PID_FILE_H
#define NBDMIRROR_BASE_PID_FILE_H

#include <sys/types.h>

/* The process id in the file PATH; 0 if there is no such file, or no process id in it (yet).
 * nbdkit and libvirt write theirs with one write(), so half a number is never seen.  Whether the
 * process still runs is not looked at.  Any thread. */
pid_t pid_file_read (const char *path);

/* The same process, if WORD is one of the words of its command line; else 0.  The file may be left
 * over, and its number that of some other program by now, or even of another guest's server. */
pid_t pid_file_process (const char *path, const char *word);

#endif
