/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Nodes that we add to a guest's QEMU, and remove from it.  0, or -1 with *ERROR (text_free()).
 */

#ifndef NBDMIRROR_CMD_ADOPT_NODES_H
#define NBDMIRROR_CMD_ADOPT_NODES_H

#include <stdbool.h>
#include <jansson.h>

#include "cmd/adopt/names.h"
#include "cmd/migrate/machine.h"

/* A connection to the server that RECORD names, which waits RECONNECT_S seconds for a server that
 * is started again. */
int nodes_add_server (struct machine *v, const struct adopt_names *names, const json_t *record,
                      unsigned reconnect_s, char **error);

/* The image, as RECORD has it.  *NODE is the name for the guest, borrowed from RECORD or NAMES. */
int nodes_add_image (struct machine *v, const struct adopt_names *names, const json_t *record,
                     const char **node, char **error);

/* The file or device alone, as NODE.  LOCKED: with QEMU's lock. */
int nodes_add_file (struct machine *v, const json_t *record, const char *node, bool locked,
                    char **error);

/* Remove those two nodes of RECORD's image again. */
int nodes_remove_image (struct machine *v, const struct adopt_names *names, const json_t *record,
                        char **error);

/* Remove NODE.  It is no error if there is none.  A node that is still in use for a moment, since
 * its job has only just ended, is tried again for some time. */
int nodes_remove (struct machine *v, const char *node, char **error);

/* *EXISTS: is there a node NODE? */
int nodes_exist (struct machine *v, const char *node, bool *exists, char **error);

#endif
