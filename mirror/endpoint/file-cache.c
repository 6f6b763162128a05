/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the page cache has of a file.  See file.h.
 *
 * Direct reads are the fast way for cold data and leave the guest's cache alone; but a direct read
 * of a page that was just written forces its write-back, and the writer waits for that: the whole
 * file's writers do, since the read keeps the inode locked meanwhile.  So what is dirty is read
 * from the cache, and only what is not in the cache at all is read around it.
 *
 * The question "is it there?" goes to cachestat(), or mincore() on a mapping that is never touched:
 * they start no I/O.  Then RWF_NOWAIT, because a page can go away meanwhile, and because mincore()
 * says "yes" to everyone who may not write to the file.  (RWF_NOWAIT alone would do, but for what
 * is missing it starts to read ahead: measured on Linux 6.18, a cold file was in the cache
 * afterwards.)
 */

#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "mirror/endpoint/file.h"

/* Debian 12's kernel headers are older than this call; it has this number nearly everywhere. */
#if !defined SYS_cachestat && !defined __alpha__
#define SYS_cachestat 451
#endif

#define MAX_PAGES (ENDPOINT_MAX_REQUEST / 4096 + 1)

/* cachestat() counts folios, mincore() looks for each page: 7 % of a whole copy's processor time.
 * Linux 6.5 and later; refused where the file is neither ours nor writable to us.  False if it
 * cannot tell. */
static bool
ask_cachestat (int fd, uint64_t len, uint64_t offset, size_t page, enum cached *answer)
{
#ifdef SYS_cachestat
  const struct {
    uint64_t offset, len;
  } range = { offset, len };
  struct {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } pages;
  static atomic_bool missing;
  uint64_t last = offset + len - 1;

  if (atomic_load (&missing))
    return false;
  if (syscall (SYS_cachestat, fd, &range, &pages, 0) == 0) {
    *answer = pages.cached == last / page - offset / page + 1 ? CACHED_ALL
              : pages.dirty + pages.writeback > 0             ? CACHED_DIRTY
                                                              : CACHED_NOT;
    return true;
  }
  if (errno == ENOSYS)
    atomic_store (&missing, true);
#endif
  (void)fd, (void)len, (void)offset, (void)page, (void)answer;
  return false;
}

/* Which of the pages from OFFSET (rounded down) on are there: bit 0 of each.  Returns how many were
 * looked at, 0 if that cannot be told. */
static size_t
ask_mincore (const struct file_endpoint *fep, uint64_t len, uint64_t offset,
             unsigned char pages[MAX_PAGES])
{
  uint64_t from = offset & ~(uint64_t)(fep->page - 1);

  len += offset - from;
  if (!fep->map || mincore ((char *)fep->map + from, (size_t)len, pages) == -1)
    return 0;
  return (size_t)((len + fep->page - 1) / fep->page);
}

enum cached
file_is_cached (const struct file_endpoint *fep, uint64_t len, uint64_t offset)
{
  unsigned char pages[MAX_PAGES];
  enum cached answer;

  if (ask_cachestat (fep->fd, len, offset, fep->page, &answer))
    return answer;

  size_t nr = ask_mincore (fep, len, offset, pages), there = 0;

  for (size_t i = 0; i < nr; i++)
    there += pages[i] & 1;
  /* mincore() does not tell what is dirty.  A page whose neighbours are missing was most likely
   * written lately. */
  return there == 0 ? CACHED_NOT : there == nr ? CACHED_ALL : CACHED_DIRTY;
}

int
file_not_cached (const struct file_endpoint *fep, uint64_t len, uint64_t offset,
                 struct file_range *parts, unsigned max)
{
  unsigned char pages[MAX_PAGES];
  uint64_t first = offset & ~(uint64_t)(fep->page - 1), end = offset + len;
  size_t pages_nr = ask_mincore (fep, len, offset, pages);
  unsigned nr = 0;

  if (pages_nr == 0)
    return -1;
  for (size_t i = 0; i < pages_nr; i++) {
    uint64_t from = i == 0 ? offset : first + i * fep->page;
    uint64_t to = first + (i + 1) * fep->page;

    if (pages[i] & 1)
      continue;
    if (to > end)
      to = end;
    if (i > 0 && nr > 0 && !(pages[i - 1] & 1)) {
      parts[nr - 1].len += to - from;
      continue;
    }
    if (nr == max)
      return -1;
    parts[nr++] = (struct file_range){ from, to - from };
  }
  return (int)nr;
}

bool
file_read_cached (const struct file_endpoint *fep, void *buf, uint64_t len, uint64_t offset)
{
  struct iovec iov = { .iov_base = buf, .iov_len = len };
  ssize_t r = preadv2 (fep->fd, &iov, 1, (off_t)offset, RWF_NOWAIT);

  if (r == -1 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
    r = pread (fep->fd, buf, len, (off_t)offset);
  return r == (ssize_t)len;
}
