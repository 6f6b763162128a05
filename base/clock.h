/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Time.  Every duration and every instant in the program is read here, and its unit stands in
 * the name: _ns, _ms or _s.  All functions may be called from any thread and cannot fail.
 */

#ifndef NBDMIRROR_BASE_CLOCK_H
#define NBDMIRROR_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US INT64_C (1000)
#define NS_PER_MS INT64_C (1000000)
#define NS_PER_S INT64_C (1000000000)
#define MS_PER_S INT64_C (1000)
#define US_PER_S INT64_C (1000000)

/* The time since some instant in the past, which never goes back.  It counts on while the
 * system's date is changed. */
uint64_t clock_ns (void);
uint64_t clock_ms (void);

/* The same clock, read more cheaply, and up to 4 ms behind clock_ns(). */
uint64_t clock_coarse_ns (void);

/* The date, in microseconds since 1970 (UTC).  Only for what people and other hosts read, and for
 * numbers that no earlier process had. */
int64_t clock_date_us (void);

/* NS nanoseconds in the form that the system's calls take. */
struct timespec clock_timespec (uint64_t ns);

/* Sleep for MS milliseconds.  Signals do not shorten it. */
void clock_sleep_ms (unsigned ms);

#endif
