/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a backup does in its repository.  See store.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/begun.h"
#include "backup/chain.h"
#include "backup/lock.h"
#include "backup/qcow2-new.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/store-far.h"
#include "cmd/backup/store.h"
#include "cmd/cmd.h"
#include "cmd/far/far.h"

#define WRITER_MS 30000
#define WRITE_OUT_PIECE (UINT64_C (64) << 20)

int
store_open (struct store *s, const char *place, char **error)
{
  if (far_is_meant (place))
    return store_far_open (s, place, false, error);
  return repository_open (&s->repo, place, false, error);
}

int
store_look (struct store *s, const char *place, char **error)
{
  if (far_is_meant (place))
    return store_far_open (s, place, true, error);
  s->missing = repository_is_missing (place);
  if (!s->missing)
    return repository_open (&s->repo, place, false, error);
  s->repo.path = text_copy (place);
  return 0;
}

int
store_make (struct store *s, char **error)
{
  if (s->far != NULL)
    return store_far_make (s, error);
  CLEANUP_TEXT char *place = s->repo.path;

  s->missing = false;
  return repository_open (&s->repo, place, true, error);
}

void
store_close (struct store *s)
{
  far_close (s->far);
  s->far = NULL;
  for (unsigned i = 0; i < s->nr_locks; i++)
    fd_close (&s->locks[i]);
  free (s->locks);
  s->locks = NULL;
  s->nr_locks = 0;
  for (unsigned i = 0; i < s->nr_files; i++) {
    text_free (s->files[i].file);
    fd_close (&s->files[i].fd);
  }
  free (s->files);
  s->files = NULL;
  s->nr_files = 0;
  repository_close (&s->repo);
}

int
store_lock (struct store *s, const char *id, int *status, char **error)
{
  if (s->far != NULL)
    return store_far_lock (s, id, status, error);
  int *more = realloc (s->locks, (s->nr_locks + 1) * sizeof *more);

  *status = EXIT_DEST_FAILED;
  if (more == NULL)
    return text_error (error, "out of memory");
  s->locks = more;
  if (repository_make_disk (&s->repo, id, error) == -1)
    return -1;
  if (repository_lock (&s->repo, id, &s->locks[s->nr_locks], error) == -1) {
    if (access (s->repo.path, W_OK) == 0)
      *status = EXIT_REFUSED;
    return -1;
  }
  s->nr_locks++;
  return 0;
}

int
store_list (struct store *s, struct backup_list *list, char **error)
{
  memset (list, 0, sizeof *list);
  if (s->missing)
    return 0;
  if (s->far != NULL)
    return store_far_list (s, list, error);
  return repository_list (&s->repo, list, error);
}

char *
store_chain_fault (struct store *s, const struct backup_list *list, const char *name,
                   const char *id)
{
  if (s->far != NULL)
    return store_far_chain_fault (s, name, id);
  return chain_fault (&s->repo, list, name, id);
}

bool
store_was_begun (struct store *s, const char *id)
{
  if (s->missing)
    return false;
  if (s->far != NULL)
    return store_far_was_begun (s, id);
  return backup_was_begun (&s->repo, id);
}

int
store_begin (struct store *s, int64_t us, char *const ids[], unsigned nr,
             char name[BACKUP_NAME_MAX], char **error)
{
  if (s->far != NULL)
    return store_far_begin (s, us, ids, nr, name, error);
  return backup_begin (&s->repo, us, ids, nr, name, error);
}

void
store_tidy (struct store *s, const char *ours, char *const held[], unsigned nr_held,
            void (*told) (void *opaque, const char *name), void *opaque)
{
  if (s->far != NULL)
    store_far_tidy (s, told, opaque);
  else
    backup_tidy (&s->repo, ours, held, nr_held, told, opaque);
}

void
store_give_up (struct store *s, const char *name, char *const ids[], unsigned nr, bool keep_mark)
{
  if (s->far != NULL)
    store_far_give_up (s, keep_mark);
  else
    backup_give_up (&s->repo, name, ids, nr, keep_mark);
}

/* ---- the file of a disk ---- */

int
store_make_file (struct store *s, const char *file, const char *parent, uint64_t bytes,
                 bool compress, char **error)
{
  if (s->far != NULL)
    return store_far_make_file (s, file, parent, bytes, compress, error);
  const char *slash = parent != NULL ? strrchr (parent, '/') : NULL;
  CLEANUP_TEXT char *path = repository_path (&s->repo, file);
  struct store_file *more = realloc (s->files, (s->nr_files + 1) * sizeof *more);

  if (more == NULL)
    return text_error (error, "out of memory");
  s->files = more;
  /* The parent by its file name alone, so that the repository can be moved. */
  int fd = qcow2_new (path, slash != NULL ? slash + 1 : NULL, bytes, compress, error);
  if (fd == -1)
    return -1;
  s->files[s->nr_files++] = (struct store_file){ .file = text_copy (file), .fd = fd };
  return 0;
}

/* The descriptor that was opened when FILE was made, so that no error of writing it is missed. */
static int
fd_of (const struct store *s, const char *file)
{
  for (unsigned i = 0; i < s->nr_files; i++)
    if (strcmp (s->files[i].file, file) == 0)
      return s->files[i].fd;
  return -1;
}

void
store_remove_file (struct store *s, const char *file)
{
  CLEANUP_TEXT char *path = repository_path (&s->repo, file);

  if (s->far != NULL)
    store_far_remove_file (s, file);
  else
    unlink (path);
}

char *
store_endpoint (const struct store *s, const char *file)
{
  return s->far != NULL ? far_endpoint (s->repo.path, file, "&resume")
                        : repository_path (&s->repo, file);
}

/* The server that has written PATH for a worker on another host ends after the worker. */
static int
wait_for_writer (const char *path, char **error)
{
  if (repository_wait_unused (path, WRITER_MS))
    return 0;
  return text_error (error, "%s is still being written to", path);
}

int
store_write_out (const struct store *s, int fd)
{
  const unsigned all
      = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  struct stat st;

  if (fstat (fd, &st) == -1)
    return -1;
  for (uint64_t at = 0; at < (uint64_t)st.st_size; at += WRITE_OUT_PIECE) {
    if (s->go_on != NULL && !s->go_on (s->opaque)) {
      errno = EINTR;
      return -1;
    }
    if (sync_file_range (fd, (off_t)at, WRITE_OUT_PIECE, all) == -1 && errno != ENOSYS)
      return -1;
  }
  return fsync (fd);
}

/* Nobody writes to the file any more.  While its data are on their way to the disk they are read
 * from the page cache; what the disk says of them is what fsync() returns. */
static int
seal_file (struct store *s, const char *path, int fd, struct manifest_disk *m, char **error)
{
  CLEANUP_TEXT char *why = NULL;
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  sync_file_range (fd, 0, 0, SYNC_FILE_RANGE_WRITE);
  if (store_digests (s, fd, m, &why) == -1)
    return text_error (error, "the file cannot be read back: %s", why);
  if (store_write_out (s, fd) == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  m->file_bytes = (uint64_t)st.st_size;
  return 0;
}

/* The digest of the disk as the file of M, for which FD is open, holds it.  For text_free(), or
 * NULL with *ERROR. */
static char *
digest_of_disk (struct store *s, int fd, const struct manifest_disk *m, char **error)
{
  struct manifest_disk read = *m;
  CLEANUP_TEXT char *why = NULL;

  read.digest = read.file_digest = read.digests_file = read.digests_own = NULL;
  if (store_digests (s, fd, &read, &why) == -1)
    text_error (error, "the file cannot be read back: %s", why);
  if (read.digests_file != NULL)
    store_remove_file (s, read.digests_file); /* it is made again, from the compressed file */
  text_free (read.digests_file);
  text_free (read.digests_own);
  text_free (read.file_digest);
  return read.digest;
}

/* qemu-img does not notice all errors of its last writes. */
static int
check_compressed (const struct manifest_disk *m, const char *before, char **error)
{
  if (before == NULL || strcmp (before, m->digest) == 0)
    return 0;
  return text_error (error, "the compressed file holds other data than the file before it: is the"
                            " repository full?");
}

int
store_seal (struct store *s, struct manifest_disk *m, char **error)
{
  if (s->far != NULL)
    return store_far_seal (s, m, error);
  CLEANUP_TEXT char *path = repository_path (&s->repo, m->file);
  CLEANUP_TEXT char *folder = repository_path (&s->repo, m->id);
  CLEANUP_FD int other = -1;
  int fd = fd_of (s, m->file), compressed = -1;

  if (fd == -1)
    return text_error (error, "%s was not made by this backup", path);
  if (wait_for_writer (path, error) == -1)
    return -1;
  bool compresses = store_will_compress (fd);
  CLEANUP_TEXT char *before = compresses ? digest_of_disk (s, fd, m, error) : NULL;
  if (!compresses || before != NULL)
    compressed = store_compress (s, m, fd, error);
  if (compressed == -1)
    return -1;
  if (compressed == 1)
    fd = other = open (path, O_RDONLY | O_CLOEXEC);
  if (seal_file (s, path, fd, m, error) == 0 && check_compressed (m, before, error) == 0
      && repository_sync (folder, error) == 0)
    return 0;
  if (m->digests_file != NULL) {
    store_remove_file (s, m->digests_file);
    text_free (m->digests_file);
    m->digests_file = NULL;
  }
  return -1;
}

/* ---- included files ---- */

int
store_open_include (const char *from, char **error)
{
  int fd = open (from, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a FIFO would wait for a writer */
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1)
    text_error (error, "--include %s: %s", from, strerror (errno));
  else if (!S_ISREG (st.st_mode))
    text_error (error, "--include %s: it is no regular file", from);
  else
    return fd;
  fd_close (&fd);
  return -1;
}

/* Copy what IN, the file FROM, holds to TO, which must not be there, and is not there after an
 * error either. */
static int
copy_file (int in, const char *from, const char *to, uint64_t *bytes, char **error)
{
  CLEANUP_FD int out = in != -1 ? open (to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
  char buffer[65536];
  ssize_t n = 0;
  int r = 0;

  if (in == -1 || out == -1)
    return text_error (error, "%s: %s", in == -1 ? from : to, strerror (errno));
  *bytes = 0;
  while (r == 0 && (n = read (in, buffer, sizeof buffer)) > 0) {
    r = fd_write_all (out, buffer, (size_t)n);
    *bytes += (uint64_t)n;
  }
  if (n == -1)
    text_error (error, "%s: %s", from, strerror (errno));
  else if (r == -1 || fsync (out) == -1)
    text_error (error, "%s: %s", to, strerror (errno));
  else
    return 0;
  unlink (to);
  return -1;
}

int
store_include_end (struct store *s, struct manifest_include *m, char **error)
{
  CLEANUP_TEXT char *path = repository_path (&s->repo, m->file);
  CLEANUP_TEXT char *folder = text_printf ("%.*s", (int)(strrchr (path, '/') - path), path);

  if (repository_sync (path, error) == -1 || repository_sync (folder, error) == -1)
    return -1;
  m->digest = store_digest_of_file (s, path, error);
  return m->digest != NULL ? 0 : -1;
}

int
store_include (struct store *s, const char *from, struct manifest_include *m, char **error)
{
  if (s->far != NULL)
    return store_far_include (s, from, m, error);
  CLEANUP_TEXT char *to = repository_path (&s->repo, m->file);
  CLEANUP_TEXT char *folder = text_printf ("%.*s", (int)(strrchr (to, '/') - to), to);
  CLEANUP_FD int in = store_open_include (from, error);

  if (in == -1)
    return -1;
  if (mkdir (folder, 0777) == -1 && errno != EEXIST)
    return text_error (error, "%s: %s", folder, strerror (errno));
  return copy_file (in, from, to, &m->bytes, error) == 0 ? store_include_end (s, m, error) : -1;
}

/* ---- the manifest ---- */

int
store_write (struct store *s, struct manifest *m, bool keep_mark, char **error)
{
  if (s->far != NULL)
    return store_far_write (s, m, keep_mark, error);
  CLEANUP_FD int lock = -1;

  if (repository_lock (&s->repo, NULL, &lock, error) == -1)
    return -1;
  /* A file server may give a lock to another host, if it has lost sight of this one. */
  if (!backup_is_marked (&s->repo, m->name))
    return text_error (error,
                       "%s: another run has removed what backup %s has made, so its lock was lost",
                       s->repo.path, m->name);
  if (repository_write (&s->repo, m, error) == -1)
    return -1;
  if (!keep_mark)
    backup_begun_end (&s->repo, m->name);
  return 0;
}

/* ---- reading ---- */

int
store_fetch (struct store *s, const struct manifest_include *m, const char *to, char **error)
{
  CLEANUP_TEXT char *from = repository_path (&s->repo, m->file);
  struct stat st;
  uint64_t bytes;

  if (s->far != NULL)
    return store_far_fetch (s, m, to, error);
  if (lstat (from, &st) == -1 || !S_ISREG (st.st_mode))
    return text_error (error, "%s is no regular file", from);
  CLEANUP_FD int in = open (from, O_RDONLY | O_CLOEXEC);
  return copy_file (in, from, to, &bytes, error);
}
