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

/* Parse VALUE into ARGS.  NULL or a reason. */
typedef const char *setter (const char *value, const char *argument, json_t *args);

static const char *
set_rate (const char *value, const char *argument, json_t *args)
{
  uint64_t n;
  const char *reason = units_parse_rate (value, &n);

  if (reason == NULL && n > INT64_MAX)
    reason = "the number is too large";
  if (reason == NULL)
    json_object_set_new (args, argument, json_integer ((json_int_t)n));
  return reason;
}

static const char *
set_time (const char *value, const char *argument, json_t *args)
{
  uint64_t n;
  const char *reason = units_parse_time (value, &n);

  if (reason == NULL && n == 0)
    reason = "it must be more than 0";
  if (reason == NULL && n > 24 * 3600 * UINT64_C (1000))
    reason = "more than a day";
  if (reason == NULL)
    json_object_set_new (args, argument, json_integer ((json_int_t)n));
  return reason;
}

static const char *
set_delay (const char *value, const char *argument, json_t *args)
{
  const char *reason = set_time (value, argument, args);

  if (reason == NULL && json_integer_value (json_object_get (args, argument)) > 10000)
    reason = "more than 10s";
  return reason;
}

static const char *
set_policy (const char *value, const char *argument, json_t *args)
{
  static const char *const policies[] = { "sync", "throttle", "none", "fail" };

  for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++)
    if (strcmp (value, policies[i]) == 0) {
      json_object_set_new (args, argument, json_string (value));
      return NULL;
    }
  return "use sync, throttle, none or fail";
}

static const char *
set_switch (const char *value, const char *argument, json_t *args)
{
  int on;
  const char *reason = units_parse_switch (value, &on);

  if (reason == NULL)
    json_object_set_new (args, argument, json_boolean (on));
  return reason;
}

static const struct {
  const char *key, *argument;
  setter *set;
} keys[] = {
  { "bandwidth", "bandwidth-limit", set_rate },
  { "max-downtime", "max-downtime-ms", set_time },
  { "max-write-delay", "max-write-delay-ms", set_delay },
  { "policy", "policy", set_policy },
  { "synchronous", "synchronous", set_switch },
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
  reason = keys[i].set (value, keys[i].argument, args);
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
