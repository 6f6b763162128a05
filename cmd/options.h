/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of the program itself share beside cmd.h: main.c, options.c, help.c,
 * completion.c.
 */

#ifndef NBDMIRROR_CMD_OPTIONS_H
#define NBDMIRROR_CMD_OPTIONS_H

#include "cmd/cmd.h"

/* The subcommand that messages and --help are about; NULL before it is known. */
void cmd_set_subcommand (const struct subcommand *sc);

/* The keys of --help and --version, which every subcommand has. */
#define CMD_OPT_HELP 0x7f01
#define CMD_OPT_VERSION 0x7f03

/* Print what --version prints. */
void cmd_print_version (void);

/* Print --help of a subcommand. */
void cmd_print_help (const struct subcommand *sc);

/* Print the completion of SHELL ("bash", "zsh" or "fish") for all SUBCOMMANDS, which end with NULL.
 * False: there is none for that shell. */
bool cmd_print_completion (const char *shell, const struct subcommand *const *subcommands);

#endif
