/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See lost-pages.h.
 *
 * The handler runs in the thread that touched the page, at any instant, and beside threads that
 * watch or unwatch another map.  So it takes no lock, and makes plain system calls only.  It finds
 * its own map whole in the table, since that was put there before anybody touched it.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dirty-bitmap/state/lost-pages.h"

#define MAPS_MAX 8u /* a server has three */

static struct watched {
  _Atomic uintptr_t map; /* 0: none; written last, and taken back first */
  _Atomic size_t bytes;
  _Atomic bool *_Atomic lost;
} watched[MAPS_MAX];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for all below, and to write the table */
static unsigned nr_watched;
static uintptr_t page_size;
static struct sigaction before; /* constant while a map is watched */

/* ---- the handler ---- */

/* The flag of the map that ADDRESS lies in, or NULL. */
static _Atomic bool *
flag_of (uintptr_t address)
{
  for (struct watched *w = watched; w < watched + MAPS_MAX; w++) {
    uintptr_t map = atomic_load (&w->map);
    size_t bytes = atomic_load (&w->bytes);
    _Atomic bool *lost = atomic_load (&w->lost);
    if (map != 0 && address - map < bytes && atomic_load (&w->map) == map)
      return lost;
  }
  return NULL;
}

/* False: it is not ours, or there is no memory. */
static bool
replace_page (uintptr_t address)
{
  _Atomic bool *lost = flag_of (address);

  if (lost == NULL)
    return false;
  atomic_store (lost, true);
  void *page = mmap (NULL, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED)
    return false;
  memset (page, 0xff, page_size);
  void *place = (void *)(address - address % page_size);
  bool done = mremap (page, page_size, page_size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place;
  atomic_store (lost, true); /* again: the map may have been made anew meanwhile */
  return done;
}

/* The default action is taken when the handler has returned. */
static void
pass_on (int sig, siginfo_t *info, void *context)
{
  if ((before.sa_flags & SA_SIGINFO) != 0)
    before.sa_sigaction (sig, info, context);
  else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
    before.sa_handler (sig);
  else {
    sigaction (sig, &before, NULL);
    raise (sig);
  }
}

static void
handle (int sig, siginfo_t *info, void *context)
{
  int saved = errno;
  bool sent = info->si_code <= 0; /* by a process */

  if (sent || !replace_page ((uintptr_t)info->si_addr))
    pass_on (sig, info, context);
  errno = saved;
}

/* ---- the table ---- */

/* The first map is watched from now on, or the last one is not any more.  Under lock. */
static void
begin (void)
{
  struct sigaction ours = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK };

  page_size = (uintptr_t)sysconf (_SC_PAGESIZE);
  sigaction (SIGBUS, NULL, &before);
  sigaction (SIGBUS, &ours, NULL);
}

static void
end (void)
{
  struct sigaction now;

  if (sigaction (SIGBUS, NULL, &now) == 0 && now.sa_sigaction == handle)
    sigaction (SIGBUS, &before, NULL);
}

int
lost_pages_watch (void *map, size_t bytes, _Atomic bool *lost)
{
  struct watched *w = watched;

  pthread_mutex_lock (&lock);
  while (w < watched + MAPS_MAX && atomic_load (&w->map) != 0)
    w++;
  bool found = w < watched + MAPS_MAX;
  if (found) {
    if (nr_watched++ == 0)
      begin ();
    atomic_store (&w->bytes, bytes);
    atomic_store (&w->lost, lost);
    atomic_store (&w->map, (uintptr_t)map);
  }
  pthread_mutex_unlock (&lock);
  errno = ENOSPC;
  return found ? 0 : -1;
}

void
lost_pages_unwatch (void *map)
{
  pthread_mutex_lock (&lock);
  for (struct watched *w = watched; w < watched + MAPS_MAX; w++)
    if (atomic_load (&w->map) == (uintptr_t)map) {
      atomic_store (&w->map, 0);
      if (--nr_watched == 0)
        end ();
    }
  pthread_mutex_unlock (&lock);
}
