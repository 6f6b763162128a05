/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Taking a running guest's disk off the tracked path:
 *
 *   give-back-options.c  the command line
 *   give-back.c          the order of the steps
 *   exchange.c           a raw node of the guest's stays, and what is below it is exchanged
 *   lent.c               an image that QEMU can open only when the server lets go of it (qcow2)
 *   stopped-guest.c      a process that sees to it that no guest stays stopped
 */

#ifndef NBDMIRROR_CMD_ADOPT_GIVE_BACK_H
#define NBDMIRROR_CMD_ADOPT_GIVE_BACK_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/names.h"
#include "cmd/adopt/served.h"
#include "cmd/adopt/stopped-guest.h"
#include "cmd/migrate/machine.h"
#include "mirror/endpoint/lend.h"

struct give_back {
  const char *qmp, *file;
  const char *discard, *aio; /* NULL: as recorded, or QEMU's default */
  bool under_libvirt, keep_server, json;

  char *control; /* absolute */
  struct adopt_names names;
  struct journal quiet;
  struct machine vm;
  json_t *record;
  struct served server;
  bool is_receive; /* CONTROL is an NBD socket */
  char *tracked;   /* the control socket of that server, owned; NULL: it has none */
  bool revived;    /* this run has started the server */
  uint64_t took_ns;
  bool kept;               /* the guest's node is a raw one on top of the connection, and stays */
  struct image_node below; /* then: the connection */

  /* lent.c */
  bool lent;         /* the server has to let go of the image */
  struct loan *loan; /* it has */
  struct stopped_guest guard;
  uint64_t stop_ns, stopped_ns; /* when the guest was stopped, and for how long */
};

/* Do it.  The exit status, after an error message if it is not EXIT_DONE. */
int give_back (struct give_back *g);

/* What an earlier run has left, which was killed: go on where the guest has moved (*DONE), else
 * undo it.  The monitor is connected.  An exit status. */
int give_back_go_on (struct give_back *g, bool *done);

/* ---- give-back-options.c ---- */

/* The guest uses the image by itself, as NODE: say so. */
void give_back_report (const struct give_back *g, const char *node);

/* ---- lent.c ---- */

/* Does the server have the image, which begins as one in FORMAT does, open through a qemu-nbd of
 * its own?  Then g->lent, and the record says so.  0, or -1 with *ERROR: it is not that image. */
int lent_check (struct give_back *g, const char *format, char **error);

/* Stop the guest, borrow the image, open it in QEMU, and put the guest there.  0, or -1 after an
 * error message: the guest may have moved all the same, and is stopped in both cases. */
int lent_move (struct give_back *g, const struct guest_disk *d, const char **node);

/* The guest has moved: let it go on. */
void lent_go_on (struct give_back *g);

/* It has not, and QEMU has the image open no longer: it goes on through the server. */
void lent_undo (struct give_back *g);

#endif
