/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The arguments of mirror-set: what is taken, what is refused, and with which words.
 */

#include "config.h"

#include <string.h>

#include "tests/unit/unit.h"

#include "control/settings.h"

/* What is wrong with the arguments ARGS, in JSON; "" if nothing is. */
static const char *
fault (const char *args)
{
  json_t *o = json_loads (args, 0, NULL);

  cr_assert_not_null (o, "%s", args);
  const char *why = settings_fault (o);
  json_decref (o);
  return why != NULL ? why : "";
}

Test (settings, are_taken)
{
  static const char *const good[] = {
    "{\"bandwidth-limit\": 0}",
    "{\"bandwidth-limit\": 9223372036854775807, \"id\": \"mirror\"}",
    "{\"max-downtime-ms\": 1, \"max-write-delay-ms\": 1}",
    "{\"max-downtime-ms\": 86400000, \"max-write-delay-ms\": 10000}",
    "{\"policy\": \"sync\", \"synchronous\": true}",
    "{\"policy\": \"throttle\", \"synchronous\": false}",
    "{\"policy\": \"none\"}",
    "{\"policy\": \"fail\"}",
    "{\"of-a-newer-version\": []}",
  };

  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    cr_assert_str_eq (fault (good[i]), "", "%s: %s", good[i], fault (good[i]));
}

Test (settings, are_refused)
{
  static const char *const bad[][2] = {
    { "{}", "nothing to set" },
    { "{\"id\": \"mirror\"}", "nothing to set" },
    { "{\"bandwidth-limit\": -1}", "bandwidth-limit must be" },
    { "{\"bandwidth-limit\": 1.5}", "bandwidth-limit must be" },
    { "{\"bandwidth-limit\": null}", "bandwidth-limit must be" },
    { "{\"max-downtime-ms\": 0}", "max-downtime-ms must be between 1 and 86400000" },
    { "{\"max-downtime-ms\": 86400001}", "max-downtime-ms must be between 1 and 86400000" },
    { "{\"max-write-delay-ms\": 0}", "max-write-delay-ms must be between 1 and 10000" },
    { "{\"max-write-delay-ms\": 10001}", "max-write-delay-ms must be between 1 and 10000" },
    { "{\"policy\": \"syn\"}", "policy must be sync, throttle, none or fail" },
    { "{\"policy\": 1}", "policy must be sync, throttle, none or fail" },
    { "{\"synchronous\": \"on\"}", "synchronous must be true or false" },
    { "{\"policy\": \"none\", \"max-downtime-ms\": \"1\"}", "max-downtime-ms must be" },
  };

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    cr_assert_not_null (strstr (fault (bad[i][0]), bad[i][1]), "%s: %s", bad[i][0],
                        fault (bad[i][0]));
}
