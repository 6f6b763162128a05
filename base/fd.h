/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * File descriptors: closing, whole reads and writes, and wake-ups.  -1 stands for "no descriptor".
 * All functions may be called from any thread.
 */

#ifndef NBDMIRROR_BASE_FD_H
#define NBDMIRROR_BASE_FD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Close *FD unless it is -1, and set it to -1.  errno stays as it was. */
void fd_close (int *fd);

/* For a local variable: fd_close() it when it goes out of scope. */
#define CLEANUP_FD __attribute__ ((cleanup (fd_close)))

/* Shall FD be closed in a program that this process starts?  0, or -1 with errno. */
int fd_close_on_exec (int fd, bool yes);

/* Write LEN bytes, however many calls that takes.  0, or -1 with errno.  FD is a blocking one. */
int fd_write_all (int fd, const void *data, size_t len);

/* Read up to the end of the file, but at most SIZE - 1 bytes, and put a NUL behind them.  Returns
 * the number of bytes without the NUL; or -1 with errno, and TEXT is "".  FD is a blocking one. */
ssize_t fd_read_text (int fd, char *text, size_t size);

/* Send LEN bytes through the Unix socket SOCK, with the descriptor PASS_FD unless that is -1.
 * FLAGS are sendmsg()'s; no SIGPIPE is raised.  How many bytes were sent, or -1 with errno. */
ssize_t fd_send (int sock, const void *data, size_t len, int pass_fd, int flags);

/* Connect to the Unix socket at PATH.  The connection, or -1 with errno. */
int fd_connect (const char *path);

/* A wake-up: a descriptor that poll() finds readable from fd_wake() to the next fd_wake_clear(),
 * however often it was woken meanwhile.  -1 with errno if there can be none. */
int fd_wake_new (void);

/* Neither fails nor waits.  fd_wake() may be called in a signal handler, and leaves errno as it
 * was. */
void fd_wake (int fd);
void fd_wake_clear (int fd);

#endif
