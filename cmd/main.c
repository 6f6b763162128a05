/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror: find the subcommand and run it.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "cmd/options.h"

/* In the order of a job's life. */
static const struct subcommand *const subcommands[] = {
  &subcommand_serve,
  &subcommand_receive,
  &subcommand_mirror,
  &subcommand_status,
  &subcommand_set,
  &subcommand_pause,
  &subcommand_resume,
  &subcommand_cancel,
  &subcommand_complete,
  &subcommand_migrate,
  &subcommand_rollback,
  &subcommand_evacuate,
  &subcommand_copy,
  &subcommand_budget,
  &subcommand_verify,
  &subcommand_digest,
  &subcommand_state,
  &subcommand_checkpoint,
  &subcommand_dirty_map,
  &subcommand_adopt,
  &subcommand_give_back,
  &subcommand_backup,
  &subcommand_backup_list,
  &subcommand_backup_verify,
  &subcommand_backup_prune,
  &subcommand_backup_merge,
  &subcommand_backup_protect,
  &subcommand_restore,
  &subcommand_serve_backup,
  &subcommand_backup_agent,
  NULL,
};

static void
print_help (void)
{
  printf ("Usage: nbdmirror SUBCOMMAND ARGUMENTS\n"
          "       nbdmirror SUBCOMMAND --help\n"
          "       nbdmirror --version\n\n"
          "Mirror a disk that is in use to another place over NBD, and hand it over.\n\n");
  for (size_t i = 0; subcommands[i] != NULL; i++)
    printf ("  %-14s %s\n", subcommands[i]->name, subcommands[i]->summary);
  printf ("\nExit status: 0 done as asked, 1 error, 2 usage, 3 destination failed (resumable),\n"
          "4 did not converge, 5 contents differ, 6 cancelled, 7 refused.\n\n"
          "The manual is nbdmirror(1).\n");
}

static const struct subcommand *
find_subcommand (const char *name)
{
  for (size_t i = 0; subcommands[i] != NULL; i++)
    if (strcmp (subcommands[i]->name, name) == 0)
      return subcommands[i];
  return NULL;
}

/* Output that could not be written (a full disk, a closed pipe) must not look like success. */
static int
finish_output (int status)
{
  if (fflush (stdout) != 0 || ferror (stdout)) {
    if (errno != EPIPE)
      cmd_say ("cannot write to standard output: %s", strerror (errno));
    if (status == EXIT_DONE)
      return EXIT_ERROR;
  }
  return status;
}

/* Whoever starts us may have closed some of 0, 1 and 2.  No disk, lock or pipe may take such a
 * number: a child's standard streams would be put in its place.  Reading from 0 still fails, and so
 * does writing to the others. */
static void
fill_standard_streams (void)
{
  int fd;

  do
    fd = open ("/dev/null", fcntl (STDIN_FILENO, F_GETFD) == -1 ? O_WRONLY : O_RDONLY);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0)
    close (fd);
}

/* An option or `help` in place of a subcommand.  Returns the exit status. */
static int
run_option (int argc, char **argv)
{
  const char *option = argv[1];

  if (strcmp (option, "--version") == 0 || strcmp (option, "-V") == 0)
    cmd_print_version ();
  else if (strcmp (option, "--help") == 0 || strcmp (option, "-h") == 0
           || strcmp (option, "help") == 0) {
    const struct subcommand *sc = argc > 2 ? find_subcommand (argv[2]) : NULL;
    if (argc > 2 && sc == NULL)
      return cmd_usage_error ("unknown subcommand '%s'", argv[2]);
    if (sc != NULL)
      cmd_print_help (sc);
    else
      print_help ();
  } else if (strcmp (option, "--print-completion") == 0) { /* for the makefile */
    if (argc != 3 || !cmd_print_completion (argv[2], subcommands))
      return cmd_usage_error ("--print-completion: give bash, zsh or fish");
  } else if (strcmp (option, "-v") == 0 || strcmp (option, "-version") == 0)
    return cmd_usage_error ("unknown option '%s': --version and -V print the version", option);
  else
    return cmd_usage_error ("unknown option '%s'", option);
  return finish_output (EXIT_DONE);
}

int
main (int argc, char **argv)
{
  struct cmd_line line = { .argc = argc - 1, .argv = argv + 1 };

  fill_standard_streams ();
  /* A peer that goes away is an error of that write, not the end of the process. */
  signal (SIGPIPE, SIG_IGN);
  /* It may be inherited as ignored: then no child could be waited for. */
  signal (SIGCHLD, SIG_DFL);

  if (argc < 2)
    return cmd_usage_error ("SUBCOMMAND is missing");
  if (argv[1][0] == '-' || strcmp (argv[1], "help") == 0)
    return run_option (argc, argv);
  const struct subcommand *sc = find_subcommand (argv[1]);
  if (sc == NULL)
    return cmd_usage_error ("unknown subcommand '%s'", argv[1]);

  cmd_set_subcommand (sc);
  line.operands = calloc ((size_t)argc, sizeof *line.operands);
  if (line.operands == NULL) {
    cmd_say ("%s", strerror (errno));
    return EXIT_ERROR;
  }
  int status = finish_output (sc->run (&line));
  free (line.operands);
  return status;
}
