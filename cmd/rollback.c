/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * rollback: make the source writable again after a hand-off.  That could make two writers.  So it
 * wants the token of that very hand-off, and the user's word that the destination is stopped.
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "control/name.h"
#include "control/rollback-token.h"

enum { OPT_TOKEN = 0x100, OPT_DESTINATION_STOPPED };

static bool
is_refusal (const char *class_)
{
  return class_ != NULL
         && (strcmp (class_, "WrongToken") == 0 || strcmp (class_, "NotFenced") == 0);
}

static const struct cmd_option options[] = {
  { "token", OPT_TOKEN, "TOKEN", "the token that 'complete' printed ('status' shows it as well)" },
  { "destination-stopped", OPT_DESTINATION_STOPPED, NULL,
    "you have made sure that nothing writes to the destination any more" },
  CMD_OPTIONS_END,
};

static int
run (struct cmd_line *line)
{
  const char *token = NULL;
  bool stopped = false;
  int opt;

  while ((opt = cmd_getopt (line)) != -1)
    switch (opt) {
    case OPT_TOKEN:
      token = optarg;
      break;
    case OPT_DESTINATION_STOPPED:
      stopped = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 1, "CONTROL"))
    return line->status;
  if (token == NULL)
    return cmd_usage_error ("--token is missing ('complete' printed it, 'status' shows it)");
  if (!rollback_token_valid (token))
    return cmd_usage_error ("--token '%s': 1 to 64 characters of A-Z a-z 0-9 . _ -", token);
  if (!stopped)
    return cmd_usage_error (
        "--destination-stopped is missing: stop the guest at the destination first, "
        "and say so with it");
  const char *control = line->operands[0].argv[0];
  if (control_is_of_qemu (control)) {
    cmd_say ("%s: refused: a disk that QEMU has open by itself has no fence to open; the command"
             " 'cont' to QEMU's monitor lets the guest go on",
             control);
    return EXIT_REFUSED;
  }
  struct control_client *c = query_connect (control);
  if (c == NULL)
    return EXIT_ERROR;
  json_t *args = json_pack ("{s:s, s:b}", "rollback-token", token, "destination-stopped", 1);
  char *class_ = NULL;
  int r = query_call (c, control, "mirror-rollback", args, NULL, &class_);
  control_client_free (c);
  r = r == 0 ? EXIT_DONE : is_refusal (class_) ? EXIT_REFUSED : EXIT_ERROR;
  text_free (class_);
  return r;
}

const struct subcommand subcommand_rollback = {
  "rollback",
  "CONTROL --token TOKEN --destination-stopped",
  "Make the source writable again after a hand-over.",
  "CONTROL is the disk's control socket.\n",
  options,
  NULL,
  "What was written to the destination since the hand-over is not brought back: mirror it the\n"
  "other way for that.  A wrong token, or a disk that was not handed over, is refused: exit\n"
  "status 7.\n\n"
  "Example:\n"
  "  nbdmirror rollback /var/lib/nbdmirror/vm1.control --token 3f2a... --destination-stopped\n",
  run
};
