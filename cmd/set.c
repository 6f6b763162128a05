/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * set: change a running job.  All values are checked before anything is sent, and they go in one
 * command: either all are taken or none.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/units.h"
#include "control/settings.h"

/* VALUE as JSON, in *V, which the caller frees.  NULL or a reason. */
typedef const char *reader (const char *value, json_t **v);

static const char *
read_rate (const char *value, json_t **v)
{
  uint64_t n = 0;
  const char *reason = units_parse_rate (value, &n);

  *v = json_integer ((json_int_t)n);
  return reason;
}

static const char *
read_time (const char *value, json_t **v)
{
  uint64_t n = 0;
  const char *reason = units_parse_time (value, &n);

  *v = json_integer (n <= INT64_MAX ? (json_int_t)n : INT64_MAX);
  return reason;
}

static const char *
read_word (const char *value, json_t **v)
{
  *v = json_string (value);
  return *v != NULL ? NULL : "it is not UTF-8";
}

static const char *
read_switch (const char *value, json_t **v)
{
  int on = 0;
  const char *reason = units_parse_switch (value, &on);

  *v = json_boolean (on);
  return reason;
}

static const struct {
  const char *key, *argument;
  reader *read;
} keys[] = {
  { "bandwidth", "bandwidth-limit", read_rate },
  { "max-downtime", "max-downtime-ms", read_time },
  { "max-write-delay", "max-write-delay-ms", read_time },
  { "policy", "policy", read_word },
  { "synchronous", "synchronous", read_switch },
};
#define NR_KEYS (sizeof keys / sizeof keys[0])

/* Add one KEY=VALUE to ARGS.  0, or the exit status after an error message. */
static int
add_setting (const char *word, json_t *args)
{
  const char *value = strchr (word, '='), *reason;
  size_t i;

  if (value == NULL || value == word)
    return cmd_usage_error ("'%s' is not KEY=VALUE", word);
  size_t len = (size_t)(value++ - word);
  for (i = 0; i < NR_KEYS; i++)
    if (strlen (keys[i].key) == len && memcmp (keys[i].key, word, len) == 0)
      break;
  if (i == NR_KEYS)
    return cmd_usage_error (
        "unknown key '%.*s': use bandwidth, max-downtime, max-write-delay, policy or"
        " synchronous",
        (int)len, word);
  if (json_object_get (args, keys[i].argument) != NULL)
    return cmd_usage_error ("%s is given twice", keys[i].key);
  json_t *v = NULL;
  reason = keys[i].read (value, &v);
  json_object_set_new (args, keys[i].argument, v);
  if (reason == NULL)
    reason = settings_fault (args); /* those before it were looked at already */
  if (reason != NULL)
    return cmd_usage_error ("%s: %s", word, reason);
  return 0;
}

static const struct cmd_option settings[] = {
  { "bandwidth", 0x100, "RATE", "send at most RATE bytes a second: 100M, 1.5G, none" },
  { "max-downtime", 0x101, "TIME", "the pause that is allowed at the hand-over: 300ms, 2s" },
  { "policy", 0x102, "sync|throttle|none|fail",
    "what to do when passes do not converge, as for 'mirror'" },
  { "synchronous", 0x103, "on|off", "guest writes wait until they have reached the destination" },
  { "max-write-delay", 0x104, "TIME", "the longest that a guest's write waits so: 50ms" },
  CMD_OPTIONS_END,
};

static int
run (struct cmd_line *line)
{
  json_t *ret = NULL;
  int r;

  if (cmd_getopt (line) != -1)
    return line->status;
  if (!cmd_operands_ok (line, 2, 0, "CONTROL KEY=VALUE"))
    return line->status;
  const char *control = line->operands[0].argv[0];
  json_t *args = json_object ();
  for (unsigned i = 1; i < line->nr_operands; i++) {
    r = add_setting (line->operands[i].argv[0], args);
    if (r != 0) {
      json_decref (args);
      return r;
    }
  }
  struct control_client *c = query_connect (control);
  if (c == NULL) {
    json_decref (args);
    return EXIT_ERROR;
  }
  r = query_call (c, control, "mirror-set", args, &ret, NULL);
  /* The worker may have something to say about what it was told, e.g. that a policy acts as
   * another. */
  if (r == 0 && status_text (ret, "note") != NULL)
    cmd_say ("%s: %s", control, status_text (ret, "note"));
  json_decref (ret);
  control_client_free (c);
  return r == 0 ? EXIT_DONE : EXIT_ERROR;
}

const struct subcommand subcommand_set
    = { "set",
        "CONTROL KEY=VALUE...",
        "Change a running job.",
        "CONTROL is the disk's control socket.  Either all settings are taken or none.\n",
        NULL,
        settings,
        "k, M, G and T are powers of 1024.\n\n"
        "Example:\n"
        "  nbdmirror set /var/lib/nbdmirror/vm1.control bandwidth=50M max-downtime=1s\n",
        run };
