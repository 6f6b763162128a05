/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control socket of a copy of a disk in use (copy.h).  There is no filter that would answer, so
 * the worker does, with the same commands and the same fields.  nbdmirror-control(7) describes
 * them.
 *
 * Everything here belongs to the job's thread.  It answers only while copy_run() or
 * copy_server_linger() runs, and until a base is proved it says that the job has not begun.
 */

#ifndef NBDMIRROR_MIRROR_JOB_COPY_SERVER_H
#define NBDMIRROR_MIRROR_JOB_COPY_SERVER_H

#include <stdatomic.h>
#include <jansson.h>

struct copy_server;

/* Listen at PATH.  NULL with *ERROR (text_free()): another job does, for instance. */
struct copy_server *copy_server_new (const char *path, char **error);
void copy_server_free (struct copy_server *s); /* NULL allowed */

/* The copy is over, and REPORT (borrowed, may be NULL) says how it stands.  Go on answering for as
 * long as somebody may want to know: a coordinator that has committed, or another process that
 * finishes its work.  *SIGNAL and SIGNAL_FD as in struct copy_options: a cancel or detach ends it.
 */
void copy_server_linger (struct copy_server *s, json_t *report, _Atomic int *signal, int signal_fd);

#endif
