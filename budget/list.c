/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Budgets for people: to make, change, look at and remove them.  See budget.h.
 */

#include "config.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "budget/budget.h"
#include "budget/store.h"

/* ---- making and changing ---- */

int
budget_set (const char *name, uint64_t rate, char **error)
{
  const char *problem = budget_name_problem (name);
  struct budget_file f;

  if (problem != NULL)
    return text_error (error, "budget %s: %s", name, problem);
  if (rate != 0 && rate < BUDGET_RATE_MIN)
    return text_error (error, "budget %s: the rate must be at least %d bytes a second", name,
                       BUDGET_RATE_MIN);
  CLEANUP_FD int dir = -1;
  if (budget_directory (true, &dir, error) == -1)
    return -1;
  int r = budget_file_create (dir, name, rate, error);
  if (r != 1)
    return r;
  r = budget_file_open (dir, name, &f, error);
  if (r == 1)
    return text_error (error, "budget %s: it was removed meanwhile", name);
  if (r == -1)
    return -1;
  budget_file_set_rate (&f, rate, clock_ns ());
  budget_file_close (&f);
  return 0;
}

int
budget_remove (const char *name, char **error)
{
  const char *problem = budget_name_problem (name);
  struct budget_file f;

  if (problem != NULL)
    return text_error (error, "budget %s: %s", name, problem);
  CLEANUP_FD int dir = -1;
  int r = budget_directory (false, &dir, error);
  if (r == 0)
    r = budget_file_open (dir, name, &f, error);
  if (r == 0) {
    r = budget_file_remove (dir, name, &f, error);
    budget_file_close (&f);
  }
  return r == 1 ? text_error (error, "there is no budget %s", name) : r;
}

/* ---- looking ---- */

static void
copy_label (char *to, size_t size, const char *label)
{
  size_t n = 0;

  for (; n < BUDGET_LABEL && n + 1 < size && label[n] != '\0'; n++)
    to[n] = isprint ((unsigned char)label[n]) ? label[n] : '?';
  to[n] = '\0';
}

static void
look_at_slot (const struct budget_slot *s, uint64_t now, struct budget_member *m)
{
  m->pid = atomic_load (&s->pid);
  m->weight = atomic_load (&s->weight);
  m->bytes = atomic_load (&s->bytes);
  m->active = budget_is_active (s, now);
  m->used = m->active ? atomic_load (&s->used) : 0;
  copy_label (m->label, sizeof m->label, s->label);
}

int
budget_look (const char *name, struct budget_view *view, char **error)
{
  const char *problem = budget_name_problem (name);
  struct budget_file f;

  if (problem != NULL)
    return text_error (error, "budget %s: %s", name, problem);
  *view = (struct budget_view){ .rate = 0 };
  CLEANUP_FD int dir = -1;
  int r = budget_directory (false, &dir, error);
  if (r == 0)
    r = budget_file_open (dir, name, &f, error);
  if (r != 0)
    return r;
  strcpy (view->name, name);
  view->rate = atomic_load (&f.memory->rate);
  view->bytes = atomic_load (&f.memory->bytes);
  view->members = calloc (BUDGET_SLOTS, sizeof *view->members);
  unsigned top = atomic_load (&f.memory->top);
  for (unsigned i = 0; view->members != NULL && i < top && i < BUDGET_SLOTS; i++)
    if (budget_is_locked (f.fd, i))
      look_at_slot (&f.memory->slots[i], clock_ns (), &view->members[view->nr_members++]);
  budget_file_close (&f);
  return 0;
}

void
budget_view_free (struct budget_view *view)
{
  free (view->members);
}

static int
by_name (const void *a, const void *b)
{
  return strcmp (*(char *const *)a, *(char *const *)b);
}

int
budget_names (char ***names, char **error)
{
  int fd, nr = 0, r = budget_directory (false, &fd, error);
  struct dirent *entry;

  *names = NULL;
  if (r != 0)
    return r == 1 ? 0 : -1;
  DIR *dir = fdopendir (fd);
  while (dir != NULL && (entry = readdir (dir)) != NULL) {
    if (budget_name_problem (entry->d_name) != NULL)
      continue;
    char **more = realloc (*names, ((size_t)nr + 1) * sizeof *more);
    if (more == NULL)
      break;
    *names = more;
    more[nr++] = text_copy (entry->d_name);
  }
  if (dir != NULL)
    closedir (dir);
  else
    close (fd);
  if (nr > 0)
    qsort (*names, (size_t)nr, sizeof **names, by_name);
  return nr;
}
