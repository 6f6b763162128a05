/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * CONTROL.adopted: how a guest's disk was attached before it was adopted, so that `give-back` can
 * make it the same again, in whatever process and however long after.
 *
 *   { "device": "/machine/peripheral/vd0/virtio-backend", "backend": "",
 *     "node": "disk0", "driver": "raw",          driver: null if the file's node is the guest's
 *     "file-node": "file0", "file-driver": "file", "filename": "/srv/vm1.img",
 *     "direct": false, "no-flush": false, "detect-zeroes": "off", "discard": "ignore",
 *     "aio": "threads", "size": 1073741824, "socket": "/run/vm1.nbd",
 *     "started": true,                           adopt has started the server
 *     "nbdkit-args": [],                         with these arguments for nbdkit
 *     "state": null }                            and this state file
 *
 * What `give-back` adds for itself is in lent.c and exchange.h.
 *
 * The names of nodes are null where QEMU has made them up by itself.  The file is replaced as a
 * whole, and is durable before anything is changed in QEMU.
 */

#ifndef NBDMIRROR_CMD_ADOPT_RECORD_H
#define NBDMIRROR_CMD_ADOPT_RECORD_H

#include <jansson.h>
#include <sys/stat.h>

#include "cmd/adopt/served.h"

/* *RECORD: a new reference, or NULL if there is none.  0, or -1 with *ERROR (text_free()) if it
 * cannot be read or is none of ours.  CONTROL is an absolute path, as below. */
int record_load (const char *control, json_t **record, char **error);

/* 0, or -1 with *ERROR (text_free()). */
int record_save (const char *control, const json_t *record, char **error);

/* The text KEY of RECORD, or "" if there is none; RECORD may be NULL. */
const char *record_text (const json_t *record, const char *key);

/* SERVER, at CONTROL, tells which image it serves.  Where that is another one than RECORD says, the
 * disk was moved to other storage since (evacuate-disk), and the record is brought up to date.  0,
 * or -1 with *ERROR. */
int record_take_image (const char *control, json_t *record, const struct served *server,
                       char **error);

/* QEMU's driver for what ST is of. */
const char *record_file_driver (const struct stat *st);

/* Remove it, if there is one, and what a process that was killed has left of one. */
void record_remove (const char *control);

#endif
