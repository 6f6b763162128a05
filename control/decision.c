/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The decision word of a hand-off.  See decision.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "control/decision.h"

#define DECISION_BYTES 4096
#define DECISION_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

static struct decision *
fail (int fd, char **error, const char *what)
{
  text_error (error, "decision word: %s: %s", what, strerror (errno));
  fd_close (&fd);
  return NULL;
}

/* Takes FD over. */
static struct decision *
map_fd (int fd, char **error)
{
  struct decision *d = calloc (1, sizeof *d);
  if (d == NULL)
    return fail (fd, error, "no memory");
  void *p = mmap (NULL, DECISION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) {
    free (d);
    return fail (fd, error, "cannot map it");
  }
  d->word = p;
  d->fd = fd;
  return d;
}

struct decision *
decision_create (char **error)
{
  int fd = memfd_create ("nbdmirror-decision", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd == -1)
    return fail (fd, error, "memfd_create");
  if (ftruncate (fd, DECISION_BYTES) == -1)
    return fail (fd, error, "ftruncate");
  if (fcntl (fd, F_ADD_SEALS, DECISION_SEALS | F_SEAL_SEAL) == -1)
    return fail (fd, error, "cannot seal it");
  return map_fd (fd, error);
}

struct decision *
decision_map (int fd, char **error)
{
  struct stat st;

  int copy = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  if (copy == -1)
    return fail (copy, error, "cannot duplicate the descriptor");
  int seals = fcntl (copy, F_GET_SEALS);
  if (seals == -1)
    return fail (copy, error, "the descriptor is not a memfd");
  errno = EINVAL;
  if ((seals & DECISION_SEALS) != DECISION_SEALS)
    return fail (copy, error, "the memfd is not sealed against shrinking and growing");
  if (fstat (copy, &st) == -1)
    return fail (copy, error, "fstat");
  errno = EINVAL;
  if (st.st_size != DECISION_BYTES)
    return fail (copy, error, "the memfd has not 4096 bytes");
  return map_fd (copy, error);
}

void
decision_free (struct decision *d)
{
  if (d == NULL)
    return;
  munmap ((void *)d->word, DECISION_BYTES);
  close (d->fd);
  free (d);
}

enum decision_value
decision_get (const struct decision *d)
{
  return (enum decision_value)atomic_load (d->word);
}

enum decision_value
decision_try (struct decision *d, enum decision_value value)
{
  uint32_t seen = DECISION_UNDECIDED;
  if (atomic_compare_exchange_strong (d->word, &seen, value))
    return value;
  return (enum decision_value)seen;
}
