/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A member of a budget.  See budget.h.
 *
 * The account is a time: what was spent so far is paid for then.  To spend is to move it on, by one
 * compare-and-swap, so nobody can be killed in the middle.  All members may look before one of them
 * pays, so it may lie in the future by a request of each.  A time further away was never written by
 * a member that works, and counts as now.
 */

#include "config.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "budget/budget.h"
#include "budget/store.h"
#include "budget/share.h"

#define BURST_NS ((uint64_t)(100 * NS_PER_MS)) /* unspent for longer is lost */
#define MAX_REQUEST (2u << 20)                 /* bytes; more than anybody pays for at once */
#define LOOK_NS ((uint64_t)(50 * NS_PER_MS))
#define MAX_WAIT_NS ((uint64_t)(100 * NS_PER_MS))
#define ROOM_TO_GROW 1.25 /* times what it uses, for a member that does not have to wait */
#define LEAST 0.02        /* ... but so much of the budget at least */

struct budget {
  struct budget_file file;
  unsigned slot;
  char name[BUDGET_NAME_MAX + 1];

  uint64_t paid_ns;    /* as the account, for what we spent, at our share */
  uint64_t last_bytes; /* of the last request */
  _Atomic uint64_t share;
  uint64_t looked_ns;
  uint64_t taken; /* since then */
  double used;
  bool denied; /* since then */
};

const char *
budget_name_problem (const char *name)
{
  if (name[0] == '\0' || strlen (name) > BUDGET_NAME_MAX)
    return "a budget's name has 1 to 64 characters";
  if (!isalnum ((unsigned char)name[0]))
    return "a budget's name begins with a letter or a digit";
  for (const char *p = name; *p != '\0'; p++)
    if (!isalnum ((unsigned char)*p) && strchr ("._-", *p) == NULL)
      return "a budget's name has letters, digits and . _ - only";
  return NULL;
}

/* ---- joining ---- */

/* The first slot that nobody has.  False: there is none. */
static bool
take_slot (struct budget *b)
{
  struct budget_memory *m = b->file.memory;

  for (b->slot = 0; b->slot < BUDGET_SLOTS; b->slot++)
    if (budget_lock (b->file.fd, b->slot, 1)) {
      uint32_t top = atomic_load (&m->top);
      while (top <= b->slot && !atomic_compare_exchange_weak (&m->top, &top, b->slot + 1))
        ;
      return true;
    }
  return false;
}

static void
introduce (struct budget *b, unsigned weight, const char *label)
{
  struct budget_slot *s = &b->file.memory->slots[b->slot];

  atomic_store (&s->wanted_ns, 0);
  atomic_store (&s->used, 0);
  atomic_store (&s->bytes, 0);
  atomic_store (&s->hungry, 1);
  atomic_store (&s->weight, weight);
  atomic_store (&s->pid, (uint32_t)getpid ());
  strncpy (s->label, label, sizeof s->label);
}

/* Was the file removed since we have opened it, or is it being removed now? */
static bool
is_gone (const struct budget *b)
{
  struct stat st;

  return budget_is_being_removed (b->file.fd) || (fstat (b->file.fd, &st) == 0 && st.st_nlink == 0);
}

struct budget *
budget_join (const char *name, unsigned weight, const char *label, char **error)
{
  const char *problem = budget_name_problem (name);
  struct budget *b = calloc (1, sizeof *b);

  if (b == NULL || problem != NULL) {
    text_error (error, "budget %s: %s", name, problem != NULL ? problem : "out of memory");
    free (b);
    return NULL;
  }
  CLEANUP_FD int dir = -1;
  int r = budget_directory (false, &dir, error);
  if (r == 0)
    r = budget_file_open (dir, name, &b->file, error);
  if (r == 0 && take_slot (b) && !is_gone (b)) {
    strcpy (b->name, name);
    introduce (b, weight, label);
    return b;
  }
  if (r == 0 && b->slot == BUDGET_SLOTS && !is_gone (b))
    text_error (error, "budget %s: it has %u members, and no room for more", name, BUDGET_SLOTS);
  else if (r != -1)
    text_error (error, "there is no budget %s: 'nbdmirror budget %s RATE' makes it", name, name);
  if (r == 0)
    budget_file_close (&b->file);
  free (b);
  return NULL;
}

void
budget_leave (struct budget *b)
{
  if (b == NULL)
    return;
  atomic_store (&b->file.memory->slots[b->slot].wanted_ns, 0);
  budget_file_close (&b->file); /* and the slot's lock with it */
  free (b);
}

/* ---- the share ---- */

/* What the slot S claims.  False if it takes no part. */
static bool
claim_of (const struct budget_slot *s, double rate, uint64_t now, struct share_claim *claim)
{
  uint32_t weight = atomic_load (&s->weight);

  if (!budget_is_active (s, now))
    return false;
  if (weight < 1 || weight > BUDGET_WEIGHT_MAX)
    weight = 1;
  double used = (double)atomic_load (&s->used) * ROOM_TO_GROW;
  *claim = (struct share_claim){ .weight = weight,
                                 .demand = atomic_load (&s->hungry) != 0 ? INFINITY
                                           : used > rate * LEAST         ? used
                                                                         : rate * LEAST };
  return true;
}

static double
work_out_share (const struct budget *b, uint64_t rate, uint64_t now)
{
  const struct budget_memory *m = b->file.memory;
  struct share_claim claims[BUDGET_SLOTS];
  unsigned nr = 0, me = 0, top = atomic_load (&m->top);

  for (unsigned i = 0; i < top && i < BUDGET_SLOTS; i++) {
    if (i == b->slot)
      me = nr;
    if (claim_of (&m->slots[i], (double)rate, now, &claims[nr]))
      nr++;
    else if (i == b->slot)
      claims[nr++] = (struct share_claim){ .weight = 1, .demand = INFINITY };
  }
  return share_of ((double)rate, nr, claims, me);
}

/* Tell the others how we are, and see how they are. */
static void
look (struct budget *b, uint64_t now)
{
  struct budget_slot *s = &b->file.memory->slots[b->slot];
  uint64_t rate = atomic_load (&b->file.memory->rate), span = now - b->looked_ns;

  /* Who has read the clock a little before somebody else of this process may look after that one.
   */
  if (b->looked_ns != 0 && (now < b->looked_ns || span < LOOK_NS))
    return;
  bool back = b->looked_ns == 0 || span > BUDGET_ABSENT_NS; /* we do not know what we could use */
  double lately = back ? 0 : (double)b->taken * NS_PER_S / (double)span;
  b->used = back ? 0 : (b->used + lately) / 2;
  atomic_store (&s->used, (uint64_t)b->used);
  atomic_store (&s->hungry, b->denied || back);
  atomic_store (&s->wanted_ns, now);
  b->looked_ns = now;
  b->taken = 0;
  b->denied = false;
  double share = rate == 0 ? 0 : work_out_share (b, rate, now);
  uint64_t new = rate != 0 && share < 1 ? 1 : (uint64_t)share,
           old = atomic_exchange (&b->share, new);
  /* A debt stays, in bytes, until there is no limit for a while. */
  if (new == 0)
    b->paid_ns = now;
  else if (b->paid_ns > now && old != 0)
    b->paid_ns = now + (uint64_t)((double)(b->paid_ns - now) * (double)old / (double)new);
}

/* ---- spending ---- */

/* When the account is paid, or now if that is too far away. */
static uint64_t
believed (const struct budget_memory *m, uint64_t paid, uint64_t rate, uint64_t now)
{
  uint32_t top = atomic_load (&m->top);
  double requests = top < BUDGET_SLOTS ? top : BUDGET_SLOTS;
  double most = requests * MAX_REQUEST * NS_PER_S / (double)rate + NS_PER_S;

  return paid > now && (double)(paid - now) > most ? now : paid;
}

/* Until what is paid at PAID is no debt any more. */
static uint64_t
debt (uint64_t paid, uint64_t now)
{
  return paid <= now ? 0 : paid - now;
}

/* PAID after BYTES more at RATE. */
static uint64_t
spend (uint64_t paid, uint64_t now, uint64_t bytes, uint64_t rate)
{
  uint64_t from = paid + BURST_NS < now ? now - BURST_NS : paid;

  return from + (uint64_t)((double)bytes * NS_PER_S / (double)rate);
}

uint64_t
budget_wait (struct budget *b, uint64_t now_ns)
{
  const struct budget_memory *m = b->file.memory;

  look (b, now_ns);
  uint64_t rate = budget_rate (b);
  if (rate == 0)
    return 0;
  uint64_t all = debt (believed (m, atomic_load (&m->paid_ns), rate, now_ns), now_ns);
  uint64_t ours = debt (b->paid_ns, now_ns), wait = all > ours ? all : ours;
  if (wait == 0)
    return 0;
  /* Of a debt of the others alone a larger share would not get it out.  But who has paid for its
   * last request a moment ago waits for a request of theirs in its turn. */
  if (b->paid_ns + 2 * b->last_bytes * NS_PER_S / rate > now_ns)
    b->denied = true;
  return wait < MAX_WAIT_NS ? wait : MAX_WAIT_NS;
}

void
budget_take (struct budget *b, uint64_t bytes, uint64_t now_ns)
{
  struct budget_memory *m = b->file.memory;
  uint64_t rate = budget_rate (b), share = atomic_load (&b->share);

  b->taken += bytes;
  b->last_bytes = bytes;
  atomic_fetch_add (&m->slots[b->slot].bytes, bytes);
  atomic_fetch_add (&m->bytes, bytes);
  if (rate == 0)
    return;
  uint64_t paid = atomic_load (&m->paid_ns);
  while (!atomic_compare_exchange_weak (
      &m->paid_ns, &paid, spend (believed (m, paid, rate, now_ns), now_ns, bytes, rate)))
    ;
  b->paid_ns = spend (b->paid_ns, now_ns, bytes, share > 0 ? share : rate);
}

/* PAID after BYTES less at RATE.  What was taken without a limit was never put on the account, and
 * the account may be young: it does not fall below nothing. */
static uint64_t
give_back (uint64_t paid, uint64_t bytes, uint64_t rate)
{
  double ns = (double)bytes * NS_PER_S / (double)rate;

  return ns < (double)paid ? paid - (uint64_t)ns : 0;
}

void
budget_give (struct budget *b, uint64_t bytes)
{
  struct budget_memory *m = b->file.memory;
  uint64_t rate = budget_rate (b), share = atomic_load (&b->share);

  b->taken -= bytes < b->taken ? bytes : b->taken;
  atomic_fetch_sub (&m->slots[b->slot].bytes, bytes);
  atomic_fetch_sub (&m->bytes, bytes);
  if (rate == 0)
    return;
  uint64_t paid = atomic_load (&m->paid_ns);
  while (!atomic_compare_exchange_weak (&m->paid_ns, &paid, give_back (paid, bytes, rate)))
    ;
  b->paid_ns = give_back (b->paid_ns, bytes, share > 0 ? share : rate);
}

/* ---- what it is ---- */

const char *
budget_name (const struct budget *b)
{
  return b->name;
}

uint64_t
budget_rate (const struct budget *b)
{
  return atomic_load (&b->file.memory->rate);
}

uint64_t
budget_share (const struct budget *b)
{
  return budget_rate (b) == 0 ? 0 : atomic_load (&b->share);
}
