/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the subcommands of nbdmirror share: exit statuses, the table of options, the reading of a
 * command line, and messages.  A subcommand is one file with one `const struct subcommand`:
 *
 *   static const struct cmd_option options[] = {
 *     { "json", 'j', NULL, "print a JSON object" },
 *     CMD_OPTIONS_END,
 *   };
 *
 *   static int
 *   run (struct cmd_line *line)
 *   {
 *     int c;
 *     while ((c = cmd_getopt (line)) != -1)
 *       switch (c) {
 *       case 'j': json = true; break;
 *       default: return line->status;            (--help was printed, or a usage error)
 *       }
 *     if (!cmd_operands_ok (line, 1, 1, "CONTROL"))
 *       return line->status;
 *     … line->operands[0].argv[0] …
 *   }
 *
 * Options and operands may be mixed; an operand may be `[ COMMAND ARGS ]`, inside which nothing is
 * taken for an option.
 */

#ifndef NBDMIRROR_CMD_CMD_H
#define NBDMIRROR_CMD_CMD_H

#include <getopt.h> /* optarg */
#include <stdbool.h>

enum nbdmirror_exit {
  EXIT_DONE = 0,          /* done as asked */
  EXIT_ERROR = 1,         /* error */
  EXIT_USAGE = 2,         /* wrong command line */
  EXIT_DEST_FAILED = 3,   /* destination failed, resumable */
  EXIT_NOT_CONVERGED = 4, /* did not converge */
  EXIT_DIFFERENT = 5,     /* contents differ */
  EXIT_CANCELLED = 6,     /* cancelled */
  EXIT_REFUSED = 7        /* refused: identity, size, fence, unsafe destination */
};

/* ---- a command line ------------------------------------------------------------------------- */

/* One operand: a word (nr_args 1), or `[` COMMAND ARGS `]` with its brackets (nr_args > 1), as
 * endpoint_open() takes them.  Points into the process's argv. */
struct cmd_operand {
  char **argv;
  unsigned nr_args;
};

struct cmd_line {
  int argc; /* of the subcommand; argv[0] is its name */
  char **argv;
  struct cmd_operand *operands; /* complete once cmd_getopt() returned -1; owned by main */
  unsigned nr_operands;
  bool keep_rest; /* set before cmd_getopt(): words after `--` go to `rest`, they are no operands */
  char **rest;
  unsigned nr_rest;
  int status; /* what to return when cmd_getopt() or cmd_operands_ok() say stop */
};

#define CMD_OPT_STOP 0x7f02

/* The next option of the subcommand (its key; `optarg` is set), -1 at the end, or CMD_OPT_STOP:
 * return line->status at once.  -h and -V are --help and --version. */
int cmd_getopt (struct cmd_line *line);

/* Check the number of operands: at least MIN, at most MAX (0: no limit).  NAMES, separated by
 * spaces, say what is missing ("CONTROL DEST").  False: a usage error was printed. */
bool cmd_operands_ok (struct cmd_line *line, unsigned min, unsigned max, const char *names);

/* Is OP, a SOURCE or DEST, what it seems to be?  False: a usage error was printed (place.c). */
bool cmd_place_ok (struct cmd_line *line, const struct cmd_operand *op);

/* ---- messages, all on stderr, each starts with "nbdmirror: SUBCOMMAND: " --------------------- */

/* Tell the user something: an error, or what has become of a job. */
void cmd_say (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void cmd_warning (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
/* cmd_say() and a line that points to --help.  Returns EXIT_USAGE. */
int cmd_usage_error (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

/* ---- the tables ----------------------------------------------------------------------------- */

/* An option.  From the same table come the reading of the command line, --help, and what shells
 * complete; a test compares it with the manual. */
struct cmd_option {
  const char
      *name; /* without its dashes; "": HELP is a heading; NULL: the table ends here; ",NAME":
                ",NAME=VALUE" may follow the value of the option before it */
  int key;   /* what cmd_getopt() returns; a letter is a short option as well */
  const char *value; /* what --help calls its value: "TIME"; "a|b" are the words it may be; NULL:
                        the option takes no value; "[LEVEL]": it may stand behind a `=`, or not at
                        all, and then optarg is NULL */
  const char *help;  /* broken into lines by cmd_print_help(); NULL: the option is another name of
                        the one before it; "": it is not listed */
};
#define CMD_OPTIONS_END                                                                            \
  {                                                                                                \
    NULL, 0, NULL, NULL                                                                            \
  }

struct subcommand {
  const char *name;
  const char *synopsis;              /* what follows "nbdmirror NAME " */
  const char *summary;               /* one sentence */
  const char *about;                 /* --help: what stands before the options; ends in a newline */
  const struct cmd_option *options;  /* NULL: it has none but --help */
  const struct cmd_option *settings; /* operands NAME=VALUE, or NULL */
  const char *more;                  /* --help: what stands behind the options */
  int (*run) (struct cmd_line *line);
};

extern const struct subcommand subcommand_adopt;
extern const struct subcommand subcommand_give_back;
extern const struct subcommand subcommand_serve;
extern const struct subcommand subcommand_receive;
extern const struct subcommand subcommand_mirror;
extern const struct subcommand subcommand_copy;
extern const struct subcommand subcommand_backup;
extern const struct subcommand subcommand_backup_agent;
extern const struct subcommand subcommand_budget;
extern const struct subcommand subcommand_status;
extern const struct subcommand subcommand_set;
extern const struct subcommand subcommand_pause;
extern const struct subcommand subcommand_resume;
extern const struct subcommand subcommand_cancel;
extern const struct subcommand subcommand_complete;
extern const struct subcommand subcommand_migrate;
extern const struct subcommand subcommand_rollback;
extern const struct subcommand subcommand_state;
extern const struct subcommand subcommand_checkpoint;
extern const struct subcommand subcommand_dirty_map;
extern const struct subcommand subcommand_verify;
extern const struct subcommand subcommand_digest;
extern const struct subcommand subcommand_evacuate;
extern const struct subcommand subcommand_backup_list;
extern const struct subcommand subcommand_backup_verify;
extern const struct subcommand subcommand_backup_prune;
extern const struct subcommand subcommand_backup_merge;
extern const struct subcommand subcommand_backup_protect;
extern const struct subcommand subcommand_restore;
extern const struct subcommand subcommand_serve_backup;

#endif
