/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The disk that `nbdmirror receive` serves: checked before anything is changed, locked against a
 * second server, made, and removed again if the migration is given up and it was made here.
 */

#ifndef NBDMIRROR_CMD_RECEIVE_DISK_H
#define NBDMIRROR_CMD_RECEIVE_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct receive_disk {
  /* What the user said. */
  const char *name;
  bool qcow2;
  bool format_said;           /* else it is raw, unless it looks otherwise */
  const char *backing;        /* or NULL */
  const char *backing_format; /* NULL: by the name */
  bool have_size;
  uint64_t size; /* bytes; known in any case once prepared */
  bool preallocate;
  bool overcommit;       /* a thin disk may be larger than the room there is */
  bool overwrite;        /* what is there may be given up */
  bool resume;           /* what is there is gone on with */
  bool tracked;          /* its server has a state file */
  bool tracked_directly; /* and its mirror filter knows the raw file */
  bool
      sealed; /* with resume: it is a guest's already.  Found out as well, where the file says so */
  bool read_only;
  bool displace; /* end another session of --stdio that has the disk (else refuse) */

  /* What has become of it. */
  char *path;   /* absolute, owned */
  int fd;       /* holds the lock; -1: none.  Not for reading or writing */
  bool created; /* the file is ours to remove */
  dev_t dev;
  ino_t ino;
};

/* Check and lock; a new file is created.  What is there is not changed yet.  EXIT_DONE, or an exit
 * status after an error message; then nothing is left that was not there. */
int receive_disk_open (struct receive_disk *d);

/* The same for what comes next: make it, or measure it.  What an older disk held is lost. */
int receive_disk_make (struct receive_disk *d);

/* Does its path still lead to what was prepared? */
bool receive_disk_is_there (const struct receive_disk *d);

/* Wait for at most LIMIT_MS until no program holds QEMU's locks on it.  False: one still does. */
bool receive_disk_wait_unused (const struct receive_disk *d, int limit_ms);

/* Remove the file if it was created here and is still the same.  True if it was. */
bool receive_disk_remove (struct receive_disk *d);

/* Unlock, free.  The lock stays with processes that inherited FD. */
void receive_disk_close (struct receive_disk *d);

#endif
