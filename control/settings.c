/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is wrong with the arguments of mirror-set.  See settings.h.
 */

#include "config.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "control/settings.h"

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF (number)

static bool
is_between (const json_t *v, json_int_t least, json_int_t most)
{
  return json_is_integer (v) && json_integer_value (v) >= least && json_integer_value (v) <= most;
}

static bool
is_policy (const json_t *v)
{
  static const char *const policies[] = { "sync", "throttle", "none", "fail" };

  for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++)
    if (json_is_string (v) && strcmp (json_string_value (v), policies[i]) == 0)
      return true;
  return false;
}

const char *
settings_fault (const json_t *args)
{
  const json_t *limit = json_object_get (args, "bandwidth-limit");
  const json_t *downtime = json_object_get (args, "max-downtime-ms");
  const json_t *policy = json_object_get (args, "policy");
  const json_t *synchronous = json_object_get (args, "synchronous");
  const json_t *delay = json_object_get (args, "max-write-delay-ms");

  if (json_object_size (args) == (json_object_get (args, "id") != NULL ? 1 : 0))
    return "nothing to set";
  if (limit != NULL && !is_between (limit, 0, INT64_MAX))
    return "bandwidth-limit must be a number of bytes a second, 0 for no limit";
  if (downtime != NULL && !is_between (downtime, 1, SETTINGS_MAX_DOWNTIME_MS))
    return "max-downtime-ms must be between 1 and " TEXT (SETTINGS_MAX_DOWNTIME_MS);
  if (policy != NULL && !is_policy (policy))
    return "policy must be sync, throttle, none or fail";
  if (synchronous != NULL && !json_is_boolean (synchronous))
    return "synchronous must be true or false";
  if (delay != NULL && !is_between (delay, 1, SETTINGS_MAX_WRITE_DELAY_MS))
    return "max-write-delay-ms must be between 1 and " TEXT (SETTINGS_MAX_WRITE_DELAY_MS);
  return NULL;
}
