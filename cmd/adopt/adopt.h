/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Putting a running guest's disk onto the tracked path (adopt.c), as the command line says it
 * (adopt-options.c).
 */

#ifndef NBDMIRROR_CMD_ADOPT_ADOPT_H
#define NBDMIRROR_CMD_ADOPT_ADOPT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/names.h"

struct adopt {
  const char *qmp, *socket_arg, *control_arg, *state_arg;
  struct disk_choice choice;
  const char *discard, *aio;
  unsigned reconnect_s;
  bool under_libvirt, json;
  char **nbdkit_args;
  unsigned nr_nbdkit_args;

  char *socket, *control; /* absolute */
  char *state;            /* the same; NULL: the server keeps no state file */
  struct adopt_names names;
  struct journal quiet;
  struct machine vm;
  json_t *record;
  bool had_record; /* of an earlier run */
  bool started;    /* the server, by this run or by one that was killed */
  bool launched;   /* by this run */
  pid_t server;    /* its process */
  uint64_t took_ns;
};

/* Do it.  The exit status, after an error message if it is not EXIT_DONE. */
int adopt_disk (struct adopt *a);

/* The guest uses our node: the rest of it (adopt-finish.c).  The same exit status. */
int adopt_finish (struct adopt *a);

#endif
