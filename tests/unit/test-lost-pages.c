/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Pages of the live maps that are lost: nobody dies of it, what was tracked is lost with them, and
 * tracking can begin anew.
 */

#include "config.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "dirty-bitmap/state/lost-pages.h"
#include "tests/unit/state-fixture.h"

static size_t page;

/* A map of PAGES pages of a file, *FD; its words are 1. */
static _Atomic uint64_t *
map_of (unsigned pages, int *fd)
{
  page = (size_t)sysconf (_SC_PAGESIZE);
  *fd = memfd_create ("map", MFD_CLOEXEC);
  cr_assert (ftruncate (*fd, (off_t)(pages * page)) == 0);
  _Atomic uint64_t *map
      = mmap (NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, (off_t)0);
  cr_assert (map != MAP_FAILED);
  for (size_t w = 0; w < pages * page / 8; w++)
    atomic_store (&map[w], 1);
  return map;
}

static void *lost_elsewhere;
static unsigned came_here;

static void
give_a_page (int sig, siginfo_t *info, void *context)
{
  (void)sig, (void)context;
  came_here += info->si_addr == lost_elsewhere;
  mmap (lost_elsewhere, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/* What is lost has all bits set, and the rest is as it was.  A page of somebody else's is left to
 * whoever handled SIGBUS before. */
Test (lost_pages, one_of_two)
{
  struct sigaction theirs = { .sa_sigaction = give_a_page, .sa_flags = SA_SIGINFO }, now;
  _Atomic bool lost = false;
  int ours_fd, theirs_fd;

  sigaction (SIGBUS, &theirs, NULL);
  _Atomic uint64_t *map = map_of (2, &ours_fd), *other = map_of (1, &theirs_fd);
  uint64_t *second = (uint64_t *)map + page / 8;
  cr_assert (lost_pages_watch ((void *)map, 2 * page, &lost) == 0);

  cr_assert (ftruncate (theirs_fd, 0) == 0);
  lost_elsewhere = (void *)other;
  cr_assert (atomic_load (other) == 0 && came_here == 1 && !lost);

  cr_assert (ftruncate (ours_fd, (off_t)page) == 0);
  cr_assert (atomic_load (map) == 1 && !lost);
  cr_assert (atomic_fetch_or ((_Atomic uint64_t *)second + 5, 1) == ~UINT64_C (0) && lost);
  for (size_t w = 0; w < page / 8; w++)
    cr_assert (second[w] == ~UINT64_C (0));
  second[7] = 3;
  cr_assert (second[7] == 3 && atomic_load (map) == 1 && came_here == 1);

  lost_pages_unwatch ((void *)map);
  sigaction (SIGBUS, NULL, &now);
  cr_assert (now.sa_sigaction == give_a_page);
  munmap ((void *)map, 2 * page);
  munmap ((void *)other, page);
  close (ours_fd);
  close (theirs_fd);
  signal (SIGBUS, SIG_DFL);
}

/* A guest writes after the file was made shorter.  The write goes on, and the loss is told.  When
 * the file has room again, a checkpoint begins anew, and the next server finds it. */
Test (lost_pages, a_file_that_is_made_shorter)
{
  struct state_view view;
  char *error = NULL;

  begin ();
  add ("a");
  write_block (1);
  cr_assert (ftruncate (file.fd, (off_t)layout.live_offset) == 0);
  write_block (2);
  state_look (&state, &view);
  cr_assert (view.lost && !view.job);
  state_round (&state);
  cr_assert (state.super.status == STATE_INCONSISTENT);

  cr_assert (state_lost_page (&state));
  cr_assert (state_file_map_again (&file, &layout, &error) == 0, "%s", error);
  cr_assert (!state_lost_page (&state));
  add ("b");
  write_block (3);
  CHANGED ("b", 3);
  cr_assert (!state_lost_page (&state));
  end ();
  start ();
  CHANGED ("b", 3);
  end ();
}

/* No guest writes, and a checkpoint is added: it would not outlive us. */
Test (lost_pages, no_checkpoint_is_added)
{
  char *error = NULL;

  begin ();
  add ("a");
  prepare ("b");
  cr_assert (ftruncate (file.fd, (off_t)layout.live_offset) == 0);
  cr_assert (state_checkpoint_commit (&state, &error) == -1);
  text_free (error);
  cr_assert (state.table->nr == 1);
  end ();
}

/* A copy of a state file may have holes.  What is mapped gets its room at once. */
Test (lost_pages, a_copy_with_holes)
{
  char *error = NULL;
  struct stat st;

  begin ();
  end ();
  state_file_close (&file);
  file.fd = memfd_create ("copy", MFD_CLOEXEC);
  cr_assert (ftruncate (file.fd, (off_t)layout.areas_offset) == 0);
  cr_assert (state_file_map_job (&file, &layout, &error) == 0, "%s", error);
  cr_assert (fstat (file.fd, &st) == 0 && (uint64_t)st.st_blocks * 512 >= layout.file_size);
  cr_assert (state_file_map_recordings (&file, &layout, &error) == 0, "%s", error);
  cr_assert (fstat (file.fd, &st) == 0 && (uint64_t)st.st_blocks * 512 >= layout.areas_offset);
}
