/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a dry run found, for people.
 */

#include "config.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cmd/show-forecast.h"
#include "cmd/units.h"

static const char *
rate_or_dash (const json_t *o, const char *key, char *buf)
{
  const json_t *v = json_object_get (o, key);
  return json_is_number (v) ? units_format_rate (buf, json_number_value (v)) : "-";
}

void
forecast_print (const json_t *o)
{
  char a[UNITS_BUF], b[UNITS_BUF];
  const json_t *thin = json_object_get (o, "destination-stays-thin");
  bool known = json_is_boolean (json_object_get (o, "converging"));

  printf ("  disk         %s in blocks of %s",
          units_format_size (a, (uint64_t)json_integer_value (json_object_get (o, "size"))),
          units_format_size (b, (uint64_t)json_integer_value (json_object_get (o, "block-size"))));
  printf (", %s to send\n",
          units_format_size (a, (uint64_t)json_integer_value (json_object_get (o, "data-bytes"))));
  printf ("  destination  %s%s%s\n", json_string_value (json_object_get (o, "target")),
          json_is_true (thin)    ? ", holes stay holes"
          : json_is_false (thin) ? ", holes are written"
                                 : "",
          json_is_true (json_object_get (o, "destination-is-the-same"))
              ? ", the one of the job that is left over"
              : "");
  printf ("  measured     for %.1f s, by reading only: source %s, destination %s\n",
          json_number_value (json_object_get (o, "measured-s")),
          rate_or_dash (o, "source-read-rate", a), rate_or_dash (o, "destination-read-rate", b));
  printf ("  bandwidth    at most %s: writing may be slower than reading was\n",
          rate_or_dash (o, "bandwidth", a));
  printf ("  dirty rate   %s\n", rate_or_dash (o, "dirty-rate", a));
  if (!known) {
    printf ("  converging   -: nothing could be read, so no bandwidth is known\n");
    return;
  }
  printf ("  converging   %s (dirty %s, bandwidth %s)\n",
          json_is_true (json_object_get (o, "converging")) ? "yes" : "no",
          rate_or_dash (o, "dirty-rate", a), rate_or_dash (o, "bandwidth", b));
  printf ("  policy       %s: %s\n", json_string_value (json_object_get (o, "policy")),
          json_string_value (json_object_get (o, "policy-action")));
  if (!json_is_true (json_object_get (o, "ends"))) {
    printf ("  forecast     it does not end under this policy\n");
    return;
  }
  double eta = json_number_value (json_object_get (o, "eta-s"));
  long long passes = (long long)json_integer_value (json_object_get (o, "passes"));
  if (eta > 0)
    printf ("  forecast     at that bandwidth ready after %s, %lld pass%s, ",
            units_format_time (a, 1000 * eta), passes, passes == 1 ? "" : "es");
  else
    printf ("  forecast     at that bandwidth ready at once, ");
  /* A guest that must be slowed down runs at full speed until the job has seen that, and is given
   * trials of full speed later. */
  printf ("%s %s sent, pause %s\n",
          json_is_true (json_object_get (o, "converging")) ? "at most" : "about",
          units_format_size (a, (uint64_t)json_integer_value (json_object_get (o, "sent-bytes"))),
          units_format_time (b, json_number_value (json_object_get (o, "expected-downtime-ms"))));
}
