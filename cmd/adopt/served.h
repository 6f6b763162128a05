/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Our server of the guest's image, seen through its control socket.  0, or -1 with *ERROR
 * (text_free()).
 */

#ifndef NBDMIRROR_CMD_ADOPT_SERVED_H
#define NBDMIRROR_CMD_ADOPT_SERVED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <jansson.h>

struct served {
  pid_t pid;
  char *image;     /* the path of the file that is served, owned; NULL: the server does not tell */
  char *container; /* the file that holds the disk in another format, owned; NULL: none is told */
  char *socket;    /* the Unix socket on which it is served, owned; NULL: the same */
  char *state;     /* its state file, owned; NULL: it keeps none */
};

/* What the server at CONTROL tells.  The caller calls served_free() after 0. */
int served_look (const char *control, struct served *s, char **error);
void served_free (struct served *s);

/* Does a server with a state file listen at CONTROL? */
bool served_has_state (const char *control);

/* Does a server listen at CONTROL? */
bool served_is_there (const char *control);

/* The process that `serve` has noted at the socket of RECORD, which is CONTROL's; 0: there is none,
 * or it cannot be told.  A server of another control socket may have taken the place meanwhile. */
pid_t served_process (const char *control, const json_t *record);

/* The same, if it serves the image of RECORD, and has closed CONTROL, since it was told to end, and
 * waits for its clients: QEMU stays one for as long as its guest wants nothing. */
pid_t served_ending (const char *control, const json_t *record);

/* From now on (ON), or no more, the guest writes to the image without passing the server, and so no
 * mirror job may begin there.  *REFUSED (set on -1): there is a job. */
int served_bypass (const char *control, bool on, bool *refused, char **error);

/* The same before there is a server: the next one at CONTROL begins so.  It is durable. */
int served_bypass_next (const char *control, char **error);

/* The server of a bypassed image has ended, and what was tracked there is written off: the next
 * server at CONTROL may track again. */
void served_forget_bypass (const char *control);

/* Start `nbdmirror serve` for IMAGE, in the background, with the state file STATE unless that is
 * NULL; NBDKIT_ARGS, NR of them, are added.  -1 after an error message of that program. */
int served_start (const char *image, const char *socket, const char *control, const char *state,
                  char **nbdkit_args, unsigned nr);

/* End the process PID with SIGTERM, or with SIGKILL if it does not end within seconds.  Returns
 * when it has ended; or after a warning false, and then no other server may take its place. */
bool served_stop (pid_t pid);

/* The same at once, with SIGKILL. */
bool served_kill (pid_t pid);

#endif
