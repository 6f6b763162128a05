/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The plan is carried out on small chains, all of them, cluster by cluster: each backup that is
 * kept reads the same at every instant, and also if the work is cut off anywhere and begun again.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

#include "backup/drop-plan.h"

#define LINKS 6
#define CLUSTERS 4
#define NONE (-1)

/* A link's file is the one with its number at first. */
struct chain {
  size_t nr;
  struct drop_link links[LINKS];
  int data[LINKS][CLUSTERS]; /* of a file; NONE: the one below holds it */
  int below[LINKS];          /* of a file */
  size_t file[LINKS];        /* of a link */
  int want[LINKS][CLUSTERS];
  unsigned writes_left; /* until it is cut off */
};

static int
look (const struct chain *c, int file, unsigned cluster)
{
  while (file != NONE && c->data[file][cluster] == NONE)
    file = c->below[file];
  return file == NONE ? 0 : c->data[file][cluster];
}

static void
check (const struct chain *c)
{
  for (size_t i = 0; i < c->nr; i++)
    for (unsigned k = 0; c->links[i].kept && k < CLUSTERS; k++)
      cr_assert_eq (look (c, (int)c->file[i], k), c->want[i][k], "link %zu", i);
}

/* May one thing more be written? */
static bool
goes_on (struct chain *c)
{
  check (c);
  return c->writes_left > 0 && c->writes_left-- > 0;
}

static bool
carry_out (struct chain *c, const struct drop_step *s)
{
  size_t top = c->file[s->top], base = c->file[s->base];

  switch (s->kind) {
  case DROP_REBASE:
    for (unsigned k = 0; k < CLUSTERS; k++)
      if (c->data[top][k] == NONE && look (c, (int)top, k) != look (c, (int)base, k)) {
        if (!goes_on (c))
          return false;
        c->data[top][k] = look (c, (int)top, k);
      }
    if (!goes_on (c))
      return false;
    c->below[top] = (int)base;
    break;
  case DROP_COMMIT:
    for (unsigned k = 0; k < CLUSTERS; k++)
      for (int f = (int)top; f != (int)base && f != NONE; f = c->below[f])
        if (c->data[f][k] != NONE) {
          if (!goes_on (c))
            return false;
          c->data[base][k] = look (c, (int)top, k);
        }
    break;
  case DROP_RELINK:
    if (!goes_on (c))
      return false;
    c->below[top] = (int)base;
    break;
  case DROP_BECOME:
    if (!goes_on (c))
      return false;
    c->file[s->top] = base;
    c->links[s->top].full = true;
    break;
  }
  check (c);
  return true;
}

static void
make (struct chain *c, size_t nr, unsigned fulls, unsigned kept, unsigned written)
{
  *c = (struct chain){ .nr = nr, .writes_left = 1000 };
  for (size_t i = 0; i < nr; i++) {
    c->links[i] = (struct drop_link){ .full = i == 0 || (fulls >> i & 1) != 0,
                                      .kept = (kept >> i & 1) != 0 };
    c->below[i] = c->links[i].full ? NONE : (int)i - 1;
    c->file[i] = i;
    for (unsigned k = 0; k < CLUSTERS; k++)
      c->data[i][k] = (written >> (i * CLUSTERS + k) & 1) != 0 ? (int)(100 + i) : NONE;
  }
  for (size_t i = 0; i < nr; i++)
    for (unsigned k = 0; k < CLUSTERS; k++)
      c->want[i][k] = look (c, (int)i, k);
}

/* Plan and carry it out.  True: to the end. */
static bool
run (struct chain *c)
{
  struct drop_step steps[LINKS];
  size_t n = drop_plan (c->links, c->nr, steps);

  cr_assert_leq (n, c->nr);
  for (size_t i = 0; i < n; i++)
    if (!carry_out (c, &steps[i]))
      return false;
  return true;
}

/* Nothing that is kept needs the file of a link that is dropped. */
static void
check_end (const struct chain *c)
{
  bool used[LINKS] = { false };

  for (size_t i = 0; i < c->nr; i++)
    used[c->file[i]] |= c->links[i].kept;
  for (size_t i = 0; i < c->nr; i++)
    for (int f = c->links[i].kept ? (int)c->file[i] : NONE; f != NONE; f = c->below[f])
      cr_assert (used[f], "file %d is still needed", f);
}

Test (drop_plan, every_chain_cut_off_at_every_write)
{
  struct chain c;

  srand (1);
  for (size_t nr = 1; nr <= LINKS; nr++)
    for (unsigned fulls = 0; fulls < 1u << nr; fulls += 2)
      for (unsigned kept = 0; kept < 1u << nr; kept++) {
        unsigned written = (unsigned)rand () ^ (unsigned)rand () << 12;
        for (unsigned cut = 0;; cut++) {
          make (&c, nr, fulls, kept, written);
          c.writes_left = cut;
          bool done = run (&c);
          c.writes_left = 1000;
          cr_assert (run (&c), "it does not come to its end");
          check_end (&c);
          if (done)
            break;
        }
      }
}

Test (drop_plan, nothing_to_do)
{
  const struct drop_link links[] = { { .full = true, .kept = true }, { .kept = true } };
  const struct drop_link none[] = { { .full = true }, { .full = false } };
  struct drop_step steps[2];

  cr_assert_eq (drop_plan (links, 0, steps), 0);
  cr_assert_eq (drop_plan (links, 2, steps), 0);
  cr_assert_eq (drop_plan (none, 2, steps), 0);
}
