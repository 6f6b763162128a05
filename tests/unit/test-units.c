/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that sizes, rates and times are read exactly up to the limits of 64 bits, that what is not
 * meant is refused with a reason and leaves the result alone, and that they are written as
 * documented.
 */

#include "config.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cmd/units.h"
#include "tests/unit/unit.h"

#define UNTOUCHED UINT64_C (0x5a5a5a5a5a5a5a5a)

typedef const char *parser (const char *text, uint64_t *out);

static void
is_read (parser *parse, const char *text, uint64_t want)
{
  uint64_t got = UNTOUCHED;
  const char *reason = parse (text, &got);

  cr_assert (reason == NULL, "'%s' was refused: %s", text, reason);
  cr_assert (got == want, "'%s' was read as %llu", text, (unsigned long long)got);
}

static void
is_refused (parser *parse, const char *text)
{
  uint64_t got = UNTOUCHED;
  const char *reason = parse (text, &got);

  cr_assert (reason != NULL, "'%s' was read as %llu", text, (unsigned long long)got);
  cr_assert (strlen (reason) > 0);
  cr_assert (got == UNTOUCHED, "'%s' was refused, but changed the result", text);
}

Test (units, sizes)
{
  is_read (units_parse_size, "0", 0);
  is_read (units_parse_size, "1", 1);
  is_read (units_parse_size, "511", 511);
  is_read (units_parse_size, "4k", 4096);
  is_read (units_parse_size, "4K", 4096);
  is_read (units_parse_size, "4KiB", 4096);
  is_read (units_parse_size, "1.5M", 3 * UINT64_C (524288));
  is_read (units_parse_size, "100M", 104857600);
  is_read (units_parse_size, "100MiB", 104857600);
  is_read (units_parse_size, "2G", UINT64_C (2) << 30);
  is_read (units_parse_size, "16T", UINT64_C (16) << 40);
  is_read (units_parse_size, "0.001k", 1);
  is_read (units_parse_size, "9007199254740993",
           UINT64_C (9007199254740993)); /* no double in between */
}

Test (units, sizes_at_the_limit)
{
  is_read (units_parse_size, "18446744073709551615", UINT64_MAX);
  is_refused (units_parse_size, "18446744073709551616");
  is_read (units_parse_size, "16777215T", UINT64_C (16777215) << 40);
  is_refused (units_parse_size, "16777216T");
  is_read (units_parse_size, "18014398509481983k", UINT64_C (18014398509481983) << 10);
  is_refused (units_parse_size, "18014398509481984k");
  is_refused (units_parse_size, "99999999999999999999999999999");
}

Test (units, sizes_refused)
{
  static const char *const bad[]
      = { "",   " ",    "k",   "-1",  "+1",  " 1",  "1 ",   "1 k", "1MB", "1Mb",    "1kk",
          "1P", "0x10", "1e3", "1.k", ".5k", "1.5", "1,5k", "nan", "inf", "1.2.3k", "1KIB" };

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    is_refused (units_parse_size, bad[i]);
}

Test (units, rates)
{
  is_read (units_parse_rate, "0", 0);
  is_read (units_parse_rate, "none", 0);
  is_read (units_parse_rate, "unlimited", 0);
  is_read (units_parse_rate, "100M", 104857600);
  is_read (units_parse_rate, "100M/s", 104857600);
  is_read (units_parse_rate, "1.5GiB/s", UINT64_C (1610612736));
  is_refused (units_parse_rate, "");
  is_refused (units_parse_rate, "/s");
  is_read (units_parse_rate, "1k", 1024);
  is_refused (units_parse_rate, "100");
  is_refused (units_parse_rate, "1023/s");
  is_refused (units_parse_rate, "100M/h");
  is_refused (units_parse_rate, "100Mbit");
  is_read (units_parse_rate, "9223372036854775807", INT64_MAX);
  is_refused (units_parse_rate, "9223372036854775808");
  is_refused (units_parse_rate,
              "111111111111111111111111111111111111111111111111111111111111111111/s");
}

Test (units, times)
{
  is_read (units_parse_time, "0", 0);
  is_read (units_parse_time, "300ms", 300);
  is_read (units_parse_time, "2s", 2000);
  is_read (units_parse_time, "0.25s", 250);
  is_read (units_parse_time, "1.5min", 90000);
  is_read (units_parse_time, "1h", 3600000);
  is_refused (units_parse_time, "300");
  is_refused (units_parse_time, "");
  is_refused (units_parse_time, "ms");
  is_refused (units_parse_time, "-1s");
  is_refused (units_parse_time, "1m");
  is_refused (units_parse_time, "1S");
  is_refused (units_parse_time, "1 s");
  is_refused (units_parse_time, "18446744073709551615s");
}

Test (units, switches)
{
  int value = -1;

  cr_assert (units_parse_switch ("on", &value) == NULL && value == 1);
  cr_assert (units_parse_switch ("off", &value) == NULL && value == 0);
  cr_assert (units_parse_switch ("TRUE", &value) == NULL && value == 1);
  cr_assert (units_parse_switch ("", &value) != NULL && value == 1);
  cr_assert (units_parse_switch ("2", &value) != NULL && value == 1);
}

static void
size_is (uint64_t bytes, const char *want)
{
  char buf[UNITS_BUF];

  cr_assert_str_eq (units_format_size (buf, bytes), want);
}

Test (units, format_sizes)
{
  size_is (0, "0 B");
  size_is (1, "1 B");
  size_is (999, "999 B");
  size_is (1000, "0.98 KiB");
  size_is (1024, "1.00 KiB");
  size_is (1536, "1.50 KiB");
  size_is (10240, "10.0 KiB");
  size_is (102400, "100 KiB");
  size_is (1023 * 1024, "1.00 MiB");
  size_is (UINT64_C (1) << 30, "1.00 GiB");
  size_is (UINT64_C (16) << 40, "16.0 TiB");
  size_is (UINT64_MAX, "16.0 EiB");
}

Test (units, format_rates)
{
  char buf[UNITS_BUF];

  cr_assert_str_eq (units_format_rate (buf, 104857600), "100 MiB/s");
  cr_assert_str_eq (units_format_rate (buf, 0), "0 B/s");
  cr_assert_str_eq (units_format_rate (buf, -1), "0 B/s");
  cr_assert_str_eq (units_format_rate (buf, (double)NAN), "0 B/s");
  cr_assert (strlen (units_format_rate (buf, 1e300)) < UNITS_BUF);
}

static void
time_is (double ms, const char *want)
{
  char buf[UNITS_BUF];

  cr_assert_str_eq (units_format_time (buf, ms), want);
}

Test (units, format_times)
{
  time_is (0, "0.0 ms");
  time_is (3.24, "3.2 ms");
  time_is (9.96, "10 ms");
  time_is (450, "450 ms");
  time_is (999.7, "1.0 s");
  time_is (12500, "12.5 s");
  time_is (59960, "1 min 00 s");
  time_is (245000, "4 min 05 s");
  time_is (12000000, "3 h 20 min");
  time_is (187200000, "2 d 04 h");
  time_is ((double)NAN, "0.0 ms");
  time_is (-5, "0.0 ms");
}
