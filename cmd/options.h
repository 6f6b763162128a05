/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What main.c and options.c share beside cmd.h.
 */

#ifndef NBDMIRROR_CMD_OPTIONS_H
#define NBDMIRROR_CMD_OPTIONS_H

#include "cmd/cmd.h"

/* The subcommand that messages and --help are about; NULL before it is known. */
void cmd_set_subcommand (const struct subcommand *sc);

void cmd_print_help (const struct subcommand *sc);

#endif
