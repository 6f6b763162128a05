/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sizes, rates and times.  Numbers are read digit by digit into integers: strtod() would follow the
 * locale and lose the low bits of large sizes.
 */

#include "config.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "cmd/units.h"

static const char too_large[] = "the number is too large";

/* A decimal number, whole + fraction / scale, with scale a power of ten. */
struct number {
  uint64_t whole, fraction, scale;
};

#define FRACTION_DIGITS 9
#define RATE_MIN 1024

/* Read digits[.digits]; *END is what follows.  NULL or a reason. */
static const char *
read_number (const char *text, struct number *n, const char **end)
{
  const char *p = text;
  unsigned digits = 0;

  *n = (struct number){ .scale = 1 };
  if (!isdigit ((unsigned char)*p))
    return *p == '\0' ? "empty" : "not a number";
  for (; isdigit ((unsigned char)*p); p++) {
    uint64_t d = (uint64_t)(*p - '0');

    if (n->whole > (UINT64_MAX - d) / 10)
      return too_large;
    n->whole = n->whole * 10 + d;
  }
  if (*p == '.') {
    p++;
    if (!isdigit ((unsigned char)*p))
      return "a digit must follow the point";
    for (; isdigit ((unsigned char)*p); p++, digits++)
      if (digits < FRACTION_DIGITS) {
        n->fraction = n->fraction * 10 + (uint64_t)(*p - '0');
        n->scale *= 10;
      }
  }
  *end = p;
  return NULL;
}

/* *OUT = N × UNIT, rounded down. */
static const char *
scale_number (const struct number *n, uint64_t unit, uint64_t *out)
{
  /* fraction < scale <= 10^9 and unit <= 2^40: the product needs more than 64 bits */
  __extension__ typedef unsigned __int128 wide;
  wide v = (wide)n->whole * unit + (wide)n->fraction * unit / n->scale;

  if (v > UINT64_MAX)
    return too_large;
  *out = (uint64_t)v;
  return NULL;
}

const char *
units_parse_size (const char *text, uint64_t *bytes)
{
  static const char letters[] = "kmgt";
  struct number n;
  const char *p, *reason = read_number (text, &n, &p);
  uint64_t unit = 1;

  if (reason != NULL)
    return reason;
  if (*p != '\0') {
    const char *l = strchr (letters, tolower ((unsigned char)*p));

    if (l == NULL || (p[1] != '\0' && strcmp (p + 1, "iB") != 0))
      return "unknown unit: use k, M, G or T (powers of 1024)";
    unit = UINT64_C (1) << (10 * (l - letters + 1));
  } else if (n.scale != 1)
    return "a fraction needs a unit: k, M, G or T";
  return scale_number (&n, unit, bytes);
}

const char *
units_parse_rate (const char *text, uint64_t *bytes_per_second)
{
  char copy[64];
  size_t len = strlen (text);

  if (strcmp (text, "none") == 0 || strcmp (text, "unlimited") == 0) {
    *bytes_per_second = 0;
    return NULL;
  }
  if (len > 2 && strcmp (text + len - 2, "/s") == 0) {
    len -= 2;
    if (len >= sizeof copy)
      return too_large;
    memcpy (copy, text, len);
    copy[len] = '\0';
    text = copy;
  }
  uint64_t rate = 0;
  const char *reason = units_parse_size (text, &rate);
  if (reason == NULL && rate != 0 && rate < RATE_MIN) /* "100" was meant to be something else */
    reason = "must be at least 1k, or none; the units are k, M, G and T";
  if (reason == NULL && rate > INT64_MAX) /* JSON has no larger number */
    reason = too_large;
  if (reason == NULL)
    *bytes_per_second = rate;
  return reason;
}

const char *
units_parse_time (const char *text, uint64_t *ms)
{
  static const struct {
    const char *name;
    uint64_t ms;
  } units[] = { { "ms", 1 }, { "s", 1000 }, { "min", 60000 }, { "h", 3600000 } };
  struct number n;
  const char *p, *reason = read_number (text, &n, &p);

  if (reason != NULL)
    return reason;
  if (*p == '\0') {
    if (n.whole != 0 || n.fraction != 0)
      return "give a unit: ms, s, min or h";
    *ms = 0;
    return NULL;
  }
  for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
    if (strcmp (p, units[i].name) == 0)
      return scale_number (&n, units[i].ms, ms);
  return "unknown unit: use ms, s, min or h";
}

const char *
units_parse_switch (const char *text, int *value)
{
  static const char *const words[2][4]
      = { { "off", "no", "false", "0" }, { "on", "yes", "true", "1" } };

  for (int v = 0; v < 2; v++)
    for (unsigned i = 0; i < 4; i++)
      if (strcasecmp (text, words[v][i]) == 0) {
        *value = v;
        return NULL;
      }
  return "give on or off";
}

/* ---- formatting ----------------------------------------------------------------------------- */

/* Three significant digits, SUFFIX after the unit. */
static char *
format_scaled (char buf[UNITS_BUF], double v, const char *suffix)
{
  static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
  unsigned u = 0;

  if (!(v > 0)) /* NaN too */
    v = 0;
  /* 999.5 would be rounded to a fourth digit */
  while (v >= 999.5 && u < sizeof units / sizeof units[0] - 1) {
    v /= 1024;
    u++;
  }
  if (v > 99999)
    v = 99999;
  snprintf (buf, UNITS_BUF, "%.*f %s%s",
            u == 0 || v >= 99.95 ? 0
            : v >= 9.995         ? 1
                                 : 2,
            v, units[u], suffix);
  return buf;
}

char *
units_format_size (char buf[UNITS_BUF], uint64_t bytes)
{
  return format_scaled (buf, (double)bytes, "");
}

char *
units_format_rate (char buf[UNITS_BUF], double bytes_per_second)
{
  return format_scaled (buf, bytes_per_second, "/s");
}

char *
units_format_time (char buf[UNITS_BUF], double ms)
{
  if (!(ms > 0))
    ms = 0;
  if (ms > 1e15)
    ms = 1e15;
  unsigned long long s = (unsigned long long)(ms / 1000 + 0.5);
  if (ms < 9.95)
    snprintf (buf, UNITS_BUF, "%.1f ms", ms);
  else if (ms < 999.5)
    snprintf (buf, UNITS_BUF, "%.0f ms", ms);
  else if (ms < 59950)
    snprintf (buf, UNITS_BUF, "%.1f s", ms / 1000);
  else if (s < 3600)
    snprintf (buf, UNITS_BUF, "%llu min %02llu s", s / 60, s % 60);
  else if (s < 86400)
    snprintf (buf, UNITS_BUF, "%llu h %02llu min", s / 3600, s / 60 % 60);
  else
    snprintf (buf, UNITS_BUF, "%llu d %02llu h", s / 86400, s / 3600 % 24);
  return buf;
}

bool
units_is_word (const char *value, const char *words)
{
  size_t len = strlen (value);

  for (const char *w = words; w != NULL; w = strchr (w, '|')) {
    w += *w == '|';
    if (len > 0 && strncmp (w, value, len) == 0 && (w[len] == '|' || w[len] == '\0'))
      return true;
  }
  return false;
}
