/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sizes, rates and times as people write and read them.  Pure: no I/O, no locale.
 *
 * The parsers return NULL on success, else the reason as a static text that completes a message
 * such as "--bandwidth 10Q: " … ; *OUT is then left alone.
 */

#ifndef NBDMIRROR_CMD_UNITS_H
#define NBDMIRROR_CMD_UNITS_H

#include <stdbool.h>
#include <stdint.h>

/* A number with an optional fraction and k, M, G, T (or KiB, MiB, GiB, TiB): powers of 1024. */
const char *units_parse_size (const char *text, uint64_t *bytes);

/* Bytes a second: as a size, "/s" may follow; 0, "none" and "unlimited" are 0 (no limit), and less
 * than 1k is refused. */
const char *units_parse_rate (const char *text, uint64_t *bytes_per_second);

/* A number with an optional fraction and ms, s, min or h.  Only 0 may go without a unit. */
const char *units_parse_time (const char *text, uint64_t *ms);

/* "on" or "off" (yes/no, true/false, 1/0). Sets *VALUE to 1 or 0. */
const char *units_parse_switch (const char *text, int *value);

#define UNITS_BUF 32

/* Each fills BUF and returns it.  Three significant digits: "1.50 GiB", "100 MiB/s", "0 B". */
char *units_format_size (char buf[UNITS_BUF], uint64_t bytes);
char *units_format_rate (char buf[UNITS_BUF], double bytes_per_second);
/* "3.2 ms", "450 ms", "12.5 s", "4 min 05 s", "3 h 20 min", "2 d 04 h". */
char *units_format_time (char buf[UNITS_BUF], double ms);

/* Is VALUE one of WORDS, which are separated by bars? */
bool units_is_word (const char *value, const char *words);

#endif
