/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Block status of an image: what is told on of the two contexts, which may divide the range in
 * different places and end at different ones.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/unit.h"

#include "nbd-plugin/image/extents.h"

#define TAKE(e, context, ...)                                                                      \
  extents_take (e, context, (const uint32_t[]){ __VA_ARGS__ },                                     \
                sizeof ((const uint32_t[]){ __VA_ARGS__ }) / sizeof (uint32_t))

static char told[400];

static int
tell (void *opaque, uint64_t offset, uint64_t length, uint32_t type)
{
  size_t n = strlen (told);

  (void)opaque;
  snprintf (told + n, sizeof told - n, "%d+%d:%u ", (int)offset, (int)length, type);
  return 0;
}

static int
refuse (void *opaque, uint64_t offset, uint64_t length, uint32_t type)
{
  (void)opaque, (void)offset, (void)length, (void)type;
  return -1;
}

/* What is told, or the errno. */
static const char *
all_of (const struct image_extents *e, bool layers)
{
  told[0] = '\0';
  int err = extents_tell (e, layers, tell, NULL);
  return err == 0 ? told : strerror (err);
}

Test (image_extents, allocation_as_it_is)
{
  struct image_extents e = { .end = 0 };

  extents_begin (&e, 100, 200);
  TAKE (&e, EXTENTS_ALLOCATION, 10, 3, 20, 0, 30, 1, 100, 2);
  TAKE (&e, EXTENTS_DEPTH, 200, 2);
  cr_assert_str_eq (all_of (&e, false), "100+10:3 110+20:0 130+30:1 160+40:2 ");
  extents_free (&e);
}

Test (image_extents, layers)
{
  struct image_extents e = { .end = 0 };

  /* Data of the top layer and of a lower one, zeroes of the top layer, of a lower one and of none.
   * A hole that is not zero would mean a lower layer. */
  extents_begin (&e, 0, 60);
  TAKE (&e, EXTENTS_ALLOCATION, 15, 0, 5, 1, 10, 0, 10, 3, 10, 2, 10, 3);
  TAKE (&e, EXTENTS_DEPTH, 20, 1, 10, 2, 15, 1, 5, 7, 10, 0);
  cr_assert_str_eq (all_of (&e, true), "0+15:0 15+5:0 20+10:1 30+10:3 40+5:2 45+5:1 50+10:3 ");
  extents_free (&e);
}

Test (image_extents, the_shorter_answer_counts)
{
  struct image_extents e = { .end = 0 };

  extents_begin (&e, 0, 100);
  TAKE (&e, EXTENTS_ALLOCATION, 40, 0);
  TAKE (&e, EXTENTS_DEPTH, 10, 1, 20, 2);
  cr_assert_str_eq (all_of (&e, true), "0+10:0 10+20:1 ");
  cr_assert_str_eq (all_of (&e, false), "0+40:0 ");
  extents_begin (&e, 0, 100);
  cr_assert_str_eq (all_of (&e, false), strerror (EPROTO));
  TAKE (&e, EXTENTS_ALLOCATION, 40, 0);
  cr_assert_str_eq (all_of (&e, true), strerror (EPROTO));
  cr_assert_eq (extents_tell (&e, false, refuse, NULL), EIO);
  extents_free (&e);
}

Test (image_extents, many)
{
  struct image_extents e = { .end = 0 };

  extents_begin (&e, 0, 1000);
  for (uint32_t i = 0; i < 500; i++)
    TAKE (&e, EXTENTS_DEPTH, 2, 1 + i % 2);
  TAKE (&e, EXTENTS_ALLOCATION, 2000, 0);
  told[0] = '\0';
  cr_assert_eq (extents_tell (&e, true, tell, NULL), 0);
  cr_assert_eq (e.list[EXTENTS_DEPTH].nr, 500);
  cr_assert (strncmp (told, "0+2:0 2+2:1 4+2:0 ", 18) == 0);
  extents_free (&e);
}
