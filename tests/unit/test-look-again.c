/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A destination that differs where nothing is dirty is another one, unless the guest's write there
 * has not ended yet.
 */

#include "config.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "dirty-bitmap/bitmap.h"
#include "mirror/job/look-again.h"
#include "tests/unit/endpoint-fixture.h"
#include "tests/unit/fixture.h"

#define BLOCKS 20u
#define WRITTEN 7u          /* the block that differs */
#define SLOW_WRITE_MS 2500u /* a write that takes this long is nothing special */

struct guest {
  struct region *region;
  _Atomic int signal;
};

static void
make_disk (const char *name, bool is_written)
{
  static uint8_t data[BLOCKS * BLOCK];
  int fd = open (in_dir (name), O_RDWR | O_CREAT, 0600);

  fill (data, sizeof data, 0);
  if (is_written)
    memset (data + WRITTEN * BLOCK, 'x', BLOCK);
  cr_assert (fd != -1);
  cr_assert_eq (write (fd, data, sizeof data - 1), (ssize_t)sizeof data - 1);
  close (fd);
}

static void *
end_write (void *opaque)
{
  struct guest *g = opaque;

  clock_sleep_ms (SLOW_WRITE_MS);
  bitmap_set (g->region, REGION_DIRTY, WRITTEN, 1);
  return NULL;
}

static void *
send_signal (void *opaque)
{
  struct guest *g = opaque;

  clock_sleep_ms (100);
  atomic_store (&g->signal, 1);
  return NULL;
}

/* The disk has one block more than the destination, and MEANWHILE runs.  What look_again() says. */
static char *
look (void *(*meanwhile) (void *), enum session_problem *problem)
{
  struct guest g = { .region = fixture_region (BLOCKS) };
  pthread_t thread;

  make_disk ("source", true);
  make_disk ("dest", false);
  struct look_again a
      = { .region = g.region, .source = must_open (in_dir ("source"), &ro), .signal = &g.signal };
  struct endpoint *dest = must_open (in_dir ("dest"), &ro);
  cr_assert_eq (pthread_create (&thread, NULL, meanwhile, &g), 0);
  char *error = look_again (&a, dest, problem);
  pthread_join (thread, NULL);
  endpoint_close (dest);
  endpoint_close (a.source);
  region_free (g.region);
  return error;
}

ENDPOINT_TEST (a_slow_write_of_the_guest_is_waited_for)
{
  enum session_problem problem;
  char *error = look (end_write, &problem);

  cr_assert (error == NULL, "%s", error);
}

/* It is told that this was not the whole look, and not that the destination is another one. */
ENDPOINT_TEST (a_signal_ends_the_wait)
{
  enum session_problem problem = SESSION_REFUSED;
  uint64_t began = clock_ms ();
  char *error = look (send_signal, &problem);

  cr_assert (error != NULL);
  cr_assert_eq (problem, SESSION_SOURCE);
  cr_assert_lt (clock_ms () - began, 20000);
  text_free (error);
}
