/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The command line of `nbdmirror migrate`.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_OPTIONS_H
#define NBDMIRROR_CMD_MIGRATE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "cmd/cmd.h"
#include "cmd/hooks.h"
#include "cmd/migrate/disk-option.h"

struct migrate_options {
  const char *source_qmp, *dest_qmp;
  struct disk_option *disks; /* NR_DISKS of them, owned */
  char **controls;           /* of each; the array is owned */
  unsigned nr_disks;
  const char *memory_uri, *incoming_uri;                       /* incoming: NULL if the same */
  const char *bandwidth, *max_downtime, *policy, *connections; /* for `mirror`, may be NULL */
  const char *give_up_stalled, *budget;                        /* the same */
  char compress[32];                                           /* the whole word, or "" */
  const char *measure;                                         /* for --dry-run, may be NULL */
  uint64_t give_up_stalled_ms;                                 /* for the memory; 0: never */
  uint64_t memory_bandwidth;                                   /* bytes a second; 0: QEMU's own */
  uint64_t max_downtime_ms;
  uint64_t timeout_ms; /* up to the hold; 0: none */
  uint64_t switch_ms;  /* the lease: from the hold to the commit */
  bool resume, keep_mirrors, quit_source, auto_converge, no_disk_check, recover, dry_run, json;
  char *adopt;    /* --adopt: the folder of the disks' sockets, absolute, owned; else NULL */
  bool give_back; /* --give-back */
  const char *log, *report;
  struct hooks hooks;
};

extern const struct cmd_option migrate_option_table[];

/* Fill in *O.  False: there is nothing more to do (--help too), with *STATUS to exit with.  Free it
 * in either case. */
bool migrate_options_parse (struct migrate_options *o, struct cmd_line *line, int *status);
void migrate_options_free (struct migrate_options *o);

#endif
