/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Watching another process until it has ended: by a pidfd; where there is none (Linux before 5.3,
 * valgrind) by its start time in /proc, which has to be looked at again and again.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PROCESS_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

struct process {
  pid_t pid;                     /* kept after its end, for messages */
  int fd;                        /* pidfd, to poll for its end; or -1 */
  unsigned long long start_time; /* without a pidfd: of /proc/PID/stat; 0: ended */
};

void process_init (struct process *p); /* none: counts as ended */

/* Watch PID instead of the one before.  0, or -1 with errno; then nothing changes. */
int process_watch (struct process *p, pid_t pid);

/* Has it ended?  A zombie has. */
bool process_ended (struct process *p);

void process_forget (struct process *p); /* counts as ended */

#endif
