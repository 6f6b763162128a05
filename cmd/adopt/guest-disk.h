/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A disk of a running guest, as its QEMU tells it: which device, which node, which image; and may
 * the guest be put onto another node?
 *
 * The texts of a struct guest_disk are borrowed from its `blocks`, and live as long.
 */

#ifndef NBDMIRROR_CMD_ADOPT_GUEST_DISK_H
#define NBDMIRROR_CMD_ADOPT_GUEST_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "cmd/migrate/machine.h"

/* How the user names it: one of these, or none if the guest has only one disk. */
struct disk_choice {
  const char *device; /* the id of a device or of a -drive, or a QOM path */
  const char *node;   /* the node that the device uses */
};

struct guest_disk {
  json_t *blocks;         /* the answer to query-block; owned */
  const char *device;     /* a QOM path, or "" */
  const char *backend;    /* the name of a -drive, or "" */
  const char *node;       /* the guest's; always a name, perhaps one that QEMU made up */
  const char *driver;     /* of that node */
  const char *filename;   /* of the image, or what stands for it */
  const json_t *inserted; /* all that query-block says of the node */
};

/* How messages name the guest's device. */
const char *guest_disk_name (const struct guest_disk *d);

/* Is D a disk that CHOICE means? */
bool guest_disk_is_meant (const struct guest_disk *d, const struct disk_choice *choice);

/* Find the disk that CHOICE means.  0, or -1 with *ERROR (text_free()), which names the disks that
 * there are; *REFUSED is set as by guest_disk_check().  The caller calls guest_disk_free() after
 * 0. */
int guest_disk_choose (struct machine *v, const struct disk_choice *choice, struct guest_disk *d,
                       bool *refused, char **error);

/* Find the disk whose device is DEVICE and whose -drive is BACKEND, both as in a struct guest_disk.
 * 1 with D filled in, 0 if there is none, -1 with *ERROR. */
int guest_disk_find (struct machine *v, const char *device, const char *backend,
                     struct guest_disk *d, char **error);

/* The path that V's QEMU calls ITS: a relative one begins at its working directory.  Without dots
 * and symbolic links, if it exists.  For text_free(). */
char *guest_disk_path (const struct machine *v, const char *its);

/* Find the disk that is connected to the NBD server at the Unix socket PATH, perhaps through a raw
 * node.  As above, but *ERROR is set with 0 as well, and names the disks that there are. */
int guest_disk_of_socket (struct machine *v, const char *path, struct guest_disk *d, char **error);

void guest_disk_free (struct guest_disk *d);

/* What is below the guest's node: the file or device, or the connection to a server. */
struct image_node {
  char node[32]; /* its name, perhaps one that QEMU made up */
  char driver[16];
};

/* May D be adopted: a plain raw image, which nothing in QEMU but this device uses?  0 with *IMAGE;
 * -1 with *ERROR.  *REFUSED (set on -1) tells a refusal from a failure. */
int guest_disk_check (struct machine *v, const struct guest_disk *d, struct image_node *image,
                      bool *refused, char **error);

/* D is a raw node on top of a connection to a server, as guest_disk_of_socket() has found it: may
 * another node come below it, in place of that connection?  As above. */
int guest_disk_check_below (struct machine *v, const struct guest_disk *d, struct image_node *below,
                            bool *refused, char **error);

/* The only node below NODE, or "" where there is none or NODE itself is not there.  0, or -1 with
 * *ERROR. */
int guest_disk_below (struct machine *v, const char *node, struct image_node *below, char **error);

#endif
