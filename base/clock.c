/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See clock.h.
 */

#include "config.h"

#include <errno.h>

#include "base/clock.h"

static uint64_t
read_ns (clockid_t clock)
{
  struct timespec ts;

  clock_gettime (clock, &ts);
  return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t
clock_ns (void)
{
  return read_ns (CLOCK_MONOTONIC);
}

uint64_t
clock_ms (void)
{
  return clock_ns () / NS_PER_MS;
}

uint64_t
clock_coarse_ns (void)
{
  return read_ns (CLOCK_MONOTONIC_COARSE);
}

int64_t
clock_date_us (void)
{
  return (int64_t)(read_ns (CLOCK_REALTIME) / NS_PER_US);
}

struct timespec
clock_timespec (uint64_t ns)
{
  return (struct timespec){ .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
}

void
clock_sleep_ms (unsigned ms)
{
  struct timespec left = clock_timespec (ms * (uint64_t)NS_PER_MS);

  while (nanosleep (&left, &left) == -1 && errno == EINTR)
    ;
}
