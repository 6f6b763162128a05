/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Requests to local files and block devices.  (endpoint-file-open.c opens them.)
 *
 * A read takes the page cache's copy where the whole range is there, else it goes around the cache
 * (O_DIRECT, libaio).  Direct is the fast way for cold data and leaves the guest's cache alone; but a
 * direct read of a block that was just written forces its write-back, and the writer waits for that: the whole
 * file's writers do, since the read keeps the inode locked meanwhile.  So a range that has any dirty page
 * in it is read through the cache as well, with what it takes from the disk.  (Measured on ext4, 2,000 random writes a
 * second before and beside a copy from a cold file: the writer's longest wait 40 ms instead of 160 ms, p99 a
 * third to a half, and without a bandwidth limit the copy takes 1.6 s a GiB instead of 2.2 s.)
 *
 * The question "is it there?" goes to cachestat(), or mincore() on a mapping that is never touched: they start
 * no I/O.  Then RWF_NOWAIT, because a page can go away meanwhile, and because mincore() says
 * "yes" to everyone who may not write to the file.  (RWF_NOWAIT alone would do, but for what is
 * missing it starts to read ahead: measured on Linux 6.18, a cold file was in the cache afterwards.)
 *
 * Writes are direct too: 1 GiB of random data from the cache to a file and flushed took 1.4 s against
 * 3.7 s buffered for a new file, and 0.9 s against 4.1 s for one that is overwritten (ext4, two
 * cores, other load beside it), and it does not push everything else out of the cache.
 *
 * What O_DIRECT does not take (unaligned ranges; any range, where it is refused) is done buffered and
 * synchronously.  So are zeroes, status and flushes: none of them has an asynchronous call.
 *
 * The kernel offers no way to give up on a request, its buffer stays in use: requests on files
 * have no time limit.
 */

#include "config.h"

#include "mirror/endpoint-file.h"

#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Debian 12's kernel headers are older than this call; it has this number nearly everywhere. */
#if !defined SYS_cachestat && !defined __alpha__
#define SYS_cachestat 451
#endif

#define FILE_ROOM 64u

struct file_channel {
  struct channel ch;
  io_context_t aio;
  int event_fd;      /* readable when direct requests are done; -1 if there is no AIO */
  unsigned nr_aio;   /* in the kernel */
  bool no_aio;       /* the kernel refused it */
  struct iocb *iocbs; /* one for each op of the pool */
};

static inline const struct file_endpoint *
file_of (const struct channel *ch)
{
  return (const struct file_endpoint *) ch->ep;
}

/* ---- Buffered I/O ----------------------------------------------------------------------- */

/* 0 or an errno. */
static int
buffered (int fd, enum op_kind kind, void *buf, uint64_t len, uint64_t offset)
{
  char *p = buf;

  while (len > 0) {
    ssize_t r = kind == OP_READ ? pread (fd, p, len, (off_t) offset)
                                : pwrite (fd, p, len, (off_t) offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return errno;
    if (r == 0)
      return EIO; /* the file became shorter */
    p += r;
    offset += (uint64_t) r;
    len -= (uint64_t) r;
  }
  return 0;
}

enum cached { CACHED_NOT, CACHED_DIRTY, CACHED_ALL };

/* cachestat() counts folios, mincore() looks for each page: 7 % of a whole copy's processor time.  Linux
 * 6.5 and later; refused where the file is neither ours nor writable to us.  False if it cannot tell. */
static bool
ask_cachestat (int fd, uint64_t len, uint64_t offset, size_t page, enum cached *answer)
{
#ifdef SYS_cachestat
  const struct { uint64_t offset, len; } range = { offset, len };
  struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } pages;
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
  (void) fd, (void) len, (void) offset, (void) page, (void) answer;
  return false;
}

static enum cached
is_cached (const struct file_endpoint *fep, uint64_t len, uint64_t offset)
{
  unsigned char pages[ENDPOINT_MAX_REQUEST / 4096 + 1];
  uint64_t from = offset & ~(uint64_t) (fep->page - 1);
  size_t nr = (size_t) ((offset + len - from + fep->page - 1) / fep->page), there = 0;
  enum cached answer;

  if (ask_cachestat (fep->fd, len, offset, fep->page, &answer))
    return answer;
  if (!fep->map || mincore ((char *) fep->map + from, (size_t) (offset + len - from), pages) == -1)
    return CACHED_NOT;
  for (size_t i = 0; i < nr; i++)
    there += pages[i] & 1;
  /* It does not tell what is dirty; what is there alone was most likely written lately. */
  return there == nr ? CACHED_ALL : there > 0 ? CACHED_DIRTY : CACHED_NOT;
}

/* Read it through the page cache if it is all there, or if some of it is dirty. */
static bool
read_cached (const struct file_endpoint *fep, struct op *op)
{
  struct iovec iov = { .iov_base = op->buf, .iov_len = op->len };
  ssize_t r;

  switch (is_cached (fep, op->len, op->offset)) {
  case CACHED_NOT:
    return false;
  case CACHED_DIRTY:
    /* An error is told by the direct read. */
    return buffered (fep->fd, OP_READ, op->buf, op->len, op->offset) == 0;
  case CACHED_ALL:
    break;
  }
  r = preadv2 (fep->fd, &iov, 1, (off_t) op->offset, RWF_NOWAIT);
  if (r == -1 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
    r = pread (fep->fd, op->buf, op->len, (off_t) op->offset);
  return r == (ssize_t) op->len;
}

/* ---- Direct I/O ------------------------------------------------------------------------- */

/* How many bytes to ask for to do OP directly; 0: not possible. */
static uint64_t
direct_length (const struct op *op)
{
  const struct file_endpoint *fep = file_of (op->ch);
  uint64_t mask = fep->align - 1;

  if (fep->direct_fd == -1 || (op->offset & mask) || ((uintptr_t) op->buf & mask))
    return 0;
  if ((op->len & mask) == 0)
    return op->len;
  /* A read of the tail may ask beyond the end. */
  if (op->kind == OP_READ && op->offset + op->len == fep->ep.info.size)
    return (op->len + mask) & ~mask;
  return 0;
}

/* The context is made when it is first needed: its end takes tens of milliseconds (io_destroy() waits for
 * all processors), and what is in the page cache needs none.  Where the system has no more of them
 * (/proc/sys/fs/aio-max-nr) requests are done one at a time. */
static bool
have_aio (struct file_channel *fc)
{
  if (!fc->aio && !fc->no_aio && io_setup ((int) fc->ch.nr_ops, &fc->aio) < 0) {
    fc->aio = NULL;
    fc->no_aio = true;
  }
  return !fc->no_aio;
}

/* True if the kernel took the request. */
static bool
direct_submit (struct file_channel *fc, struct op *op, uint64_t len)
{
  struct iocb *iocb = &fc->iocbs[op - fc->ch.pool];
  int fd = file_of (op->ch)->direct_fd;

  if (!have_aio (fc))
    return false;
  if (op->kind == OP_READ)
    io_prep_pread (iocb, fd, op->buf, len, (long long) op->offset);
  else
    io_prep_pwrite (iocb, fd, op->buf, len, (long long) op->offset);
  iocb->data = op;
  io_set_eventfd (iocb, fc->event_fd);
  if (io_submit (fc->aio, 1, &iocb) != 1)
    return false;
  fc->nr_aio++;
  return true;
}

static void
direct_result (struct op *op, long res)
{
  uint64_t done = res > 0 ? (uint64_t) res : 0;
  int error = 0;

  if (done < op->len) {
    /* Some file systems take O_DIRECT and then refuse a range; and what is behind a short
     * transfer (a medium error, a full disk) is told by trying to do the rest. */
    if (res >= 0 || res == -EINVAL || res == -EOPNOTSUPP)
      error = buffered (file_of (op->ch)->fd, op->kind, (char *) op->buf + done, op->len - done,
                        op->offset + done);
    else
      error = (int) -res;
  }
  op_done (op, error);
}

/* Take what the kernel has finished; with WAIT, wait for at least one. */
static void
direct_reap (struct file_channel *fc, bool wait)
{
  struct io_event events[FILE_ROOM];
  struct timespec now = { 0, 0 };
  int nr;

  do
    nr = io_getevents (fc->aio, wait ? 1 : 0, FILE_ROOM, events, wait ? NULL : &now);
  while (nr == -EINTR);
  for (int i = 0; i < nr; i++) {
    fc->nr_aio--;
    direct_result (events[i].data, (long) events[i].res);
  }
}

/* ---- Zeroes and status ------------------------------------------------------------------ */

static int
write_zeroes (int fd, uint64_t len, uint64_t offset)
{
  static const char zeroes[65536];

  while (len > 0) {
    uint64_t n = len < sizeof zeroes ? len : sizeof zeroes;
    int error = buffered (fd, OP_WRITE, (void *) (uintptr_t) zeroes, n, offset);

    if (error)
      return error;
    offset += n;
    len -= n;
  }
  return 0;
}

static int
zero (const struct file_endpoint *fep, uint64_t len, uint64_t offset)
{
  /* For block devices the first is "deallocate if that reads as zero", the second "write zeroes,
   * the device itself if it can". */
  static const int modes[] = { FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE };

  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    int r;

    do
      r = fallocate (fep->fd, modes[i], (off_t) offset, (off_t) len);
    while (r == -1 && errno == EINTR);
    if (r == 0)
      return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL && errno != ENODEV)
      return errno;
  }
  return write_zeroes (fep->fd, len, offset);
}

/* Holes of a regular file read as zero, always: that is more than NBD's HOLE says. */
static int
status (const struct file_endpoint *fep, struct op *op)
{
  uint64_t end = op->offset + op->len;
  uint64_t pos = op->offset;

  while (pos < end) {
    off_t data = lseek (fep->fd, (off_t) pos, SEEK_DATA);
    off_t hole;
    uint64_t to;

    if (data == -1 && errno != ENXIO)
      return op->nr_extents ? 0 : errno;
    to = data == -1 || (uint64_t) data > end ? end : (uint64_t) data;
    if (to > pos && !op_add_extent (op, to - pos, true))
      return 0;
    pos = to;
    if (pos == end)
      return 0;
    hole = lseek (fep->fd, (off_t) pos, SEEK_HOLE);
    /* A writer may have changed it since, so that the data is a hole now: then just go on
     * with a look from here, and say "data" where nothing can be told. */
    to = hole == -1 || (uint64_t) hole > end ? end : (uint64_t) hole;
    if (to > pos && !op_add_extent (op, to - pos, false))
      return 0;
    pos = to;
  }
  return 0;
}

/* ---- Channels --------------------------------------------------------------------------- */

static int
file_start (struct channel *ch, struct op *op)
{
  struct file_channel *fc = (struct file_channel *) ch;
  const struct file_endpoint *fep = file_of (ch);
  uint64_t direct;

  switch (op->kind) {
  case OP_READ:
  case OP_WRITE:
    if (op->kind == OP_READ && read_cached (fep, op)) {
      op_done (op, 0);
      break;
    }
    direct = fc->event_fd == -1 ? 0 : direct_length (op);
    if (direct == 0 || !direct_submit (fc, op, direct))
      op_done (op, buffered (fep->fd, op->kind, op->buf, op->len, op->offset));
    break;
  case OP_ZERO:
    op_done (op, zero (fep, op->len, op->offset));
    break;
  case OP_STATUS:
    op_done (op, status (fep, op));
    break;
  case OP_FLUSH:
    op_done (op, fdatasync (fep->fd) == -1 ? errno : 0);
    break;
  }
  return 0;
}

static unsigned
file_pollfds (struct channel *ch, struct pollfd *fds, unsigned max, int64_t now, int *timeout_ms)
{
  struct file_channel *fc = (struct file_channel *) ch;

  (void) now;
  (void) timeout_ms;
  if (max == 0 || fc->event_fd == -1)
    return 0;
  fds[0] = (struct pollfd){ .fd = fc->event_fd, .events = POLLIN };
  return 1;
}

static void
file_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr, int64_t now)
{
  struct file_channel *fc = (struct file_channel *) ch;
  uint64_t count;

  (void) now;
  if (nr == 0 || !(fds[0].revents & POLLIN))
    return;
  /* Emptied first: what is finished after this wakes the next poll(). */
  if (read (fc->event_fd, &count, sizeof count) == sizeof count)
    direct_reap (fc, false);
}

static void
file_stop (struct channel *ch)
{
  struct file_channel *fc = (struct file_channel *) ch;

  while (fc->nr_aio > 0)
    direct_reap (fc, true);
}

static void
file_channel_free (struct channel *ch)
{
  struct file_channel *fc = (struct file_channel *) ch;

  if (fc->event_fd != -1)
    close (fc->event_fd);
  if (fc->aio)
    io_destroy (fc->aio);
  free (fc->iocbs);
  channel_uninit (ch);
  free (fc);
}

static struct channel *
file_channel_open (struct endpoint *ep, int *errnum, char **error)
{
  struct file_endpoint *fep = (struct file_endpoint *) ep;
  struct file_channel *fc = calloc (1, sizeof *fc);

  if (!fc) {
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", ep->name, strerror (ENOMEM));
    return NULL;
  }
  fc->event_fd = -1;
  if (channel_init (&fc->ch, ep, FILE_ROOM) == -1 ||
      !(fc->iocbs = calloc (fc->ch.nr_ops, sizeof *fc->iocbs))) {
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", ep->name, strerror (ENOMEM));
    goto fail;
  }
  if (fep->direct_fd == -1)
    return &fc->ch;
  fc->event_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fc->event_fd == -1) {
    endpoint_fail (errnum, error, errno, "%s: eventfd: %s", ep->name, strerror (errno));
    goto fail;
  }
  return &fc->ch;

fail:
  file_channel_free (&fc->ch);
  return NULL;
}

const struct endpoint_ops file_ops = {
  .close = file_close,
  .channel_open = file_channel_open,
  .stop = file_stop,
  .channel_free = file_channel_free,
  .start = file_start,
  .pollfds = file_pollfds,
  .dispatch = file_dispatch,
};
