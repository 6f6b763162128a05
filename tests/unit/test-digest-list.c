/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Lists of digests: what is written is read again, lists that follow each other are combined as
 * they would be block by block, and a list that is damaged is refused.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/unit.h"

#include "base/text.h"
#include "digest/list.h"

#define LISTS 5

static char folder[32];
static char paths[LISTS][64], own[LISTS][DIGEST_WHOLE_TEXT];
static struct digest_list_kept kept[LISTS];

static void
set_up (void)
{
  strcpy (folder, "/tmp/nbdmirror-test-list.XXXXXX");
  cr_assert_not_null (mkdtemp (folder));
  for (unsigned i = 0; i < LISTS; i++) {
    snprintf (paths[i], sizeof paths[i], "%s/%u", folder, i);
    kept[i] = (struct digest_list_kept){ .path = paths[i], .own = own[i] };
  }
}

static void
tear_down (void)
{
  for (unsigned i = 0; i < LISTS; i++)
    unlink (paths[i]);
  rmdir (folder);
}

static struct digest_list *
begin (unsigned nr, bool complete, uint64_t blocks)
{
  char *error = NULL;
  struct digest_list *l = digest_list_new (paths[nr], complete, blocks, &error);

  cr_assert_not_null (l, "%s", error);
  return l;
}

static void
end (struct digest_list *l, unsigned nr)
{
  char *error = NULL;

  cr_assert_eq (digest_list_end (l, own[nr], &error), 0, "%s", error);
}

/* What a combination has told: a digest of one byte for each block; 0xff: it was not told. */
struct told {
  uint8_t *block;
  uint64_t next;
};

static void
on_run (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  struct told *t = opaque;

  cr_assert_geq (first, t->next);
  for (uint64_t i = 0; i < nr; i++)
    t->block[first + i] = digests != NULL ? digests[i * DIGEST_SIZE] : 0;
  t->next = first + nr;
}

static void
compare (unsigned from, unsigned nr, const uint8_t *expected, uint64_t blocks)
{
  struct told t = { .block = malloc (blocks) };
  char *error = NULL;

  memset (t.block, 0xff, blocks);
  cr_assert_eq (digest_list_combine (kept + from, nr, on_run, &t, &error), 0, "%s", error);
  for (uint64_t i = 0; i < blocks; i++)
    cr_assert_eq (t.block[i], expected[i], "block %ju is %u instead of %u", (uintmax_t)i,
                  t.block[i], expected[i]);
  free (t.block);
}

/* Blocks are random, zero or not, in runs of random length, over several windows. */
Test (digest_list, lists_are_combined_as_block_by_block)
{
  const uint64_t blocks = (UINT64_C (1) << 18) * 2 + 12345;
  uint8_t *all = calloc (blocks, 1), *changes = malloc (blocks), *digests = malloc (16 * 70000);
  bool complete;
  uint64_t size;

  set_up ();
  memset (changes, 0xff, blocks);
  srand (7);
  for (unsigned n = 0; n < LISTS; n++) {
    struct digest_list *l = begin (n, n == 0, blocks);
    for (uint64_t at = (uint64_t)rand () % 40, nr; at < blocks; at += nr + (uint64_t)rand () % 30) {
      nr = rand () % 100 == 0 ? 60000 : (uint64_t)rand () % 20 + 1;
      nr = nr < blocks - at ? nr : blocks - at;
      bool zero = rand () % 4 == 0;
      for (uint64_t i = 0; i < nr; i++) {
        uint8_t value = (uint8_t)(zero || rand () % 10 == 0 ? 0 : rand () % 200 + 1);
        memset (digests + i * DIGEST_SIZE, value, DIGEST_SIZE);
        all[at + i] = value;
        if (n > 0)
          changes[at + i] = value;
      }
      digest_list_add (l, at, zero ? NULL : digests, nr);
    }
    end (l, n);
    char *error = NULL;
    cr_assert_eq (digest_list_check (&kept[n], &complete, &size, &error), 0, "%s", error);
    cr_assert_eq (complete, n == 0);
    cr_assert_eq (size, blocks);
  }
  compare (0, LISTS, all, blocks);
  compare (1, LISTS - 1, changes, blocks);
  free (all);
  free (changes);
  free (digests);
  tear_down ();
}

Test (digest_list, one_that_is_empty_tells_zeroes_or_nothing)
{
  const uint8_t zeroes[3] = { 0 }, nothing[3] = { 0xff, 0xff, 0xff };

  set_up ();
  end (begin (0, true, 3), 0);
  end (begin (1, false, 3), 1);
  compare (0, 1, zeroes, 3);
  compare (1, 1, nothing, 3);
  end (begin (2, true, 0), 2);
  compare (2, 1, zeroes, 0);
  tear_down ();
}

/* Each byte of a list is covered by its own digest; and what lists must be to be combined. */
Test (digest_list, damage_is_refused)
{
  uint8_t digest[DIGEST_SIZE];
  char *error = NULL;
  bool complete;
  uint64_t blocks;

  set_up ();
  memset (digest, 7, sizeof digest);
  struct digest_list *l = begin (0, true, 10);
  digest_list_add (l, 3, digest, 1);
  end (l, 0);
  for (long at = 0; at < 24 + 16 + 16; at++) {
    FILE *f = fopen (paths[0], "r+");
    cr_assert_eq (fseek (f, at, SEEK_SET), 0);
    int c = fgetc (f);
    cr_assert_neq (c, EOF);
    cr_assert_eq (fseek (f, at, SEEK_SET), 0);
    fputc (c ^ 4, f);
    fflush (f);
    cr_assert_eq (digest_list_check (&kept[0], &complete, &blocks, &error), -1, "byte %ld", at);
    text_free (error);
    cr_assert_eq (fseek (f, at, SEEK_SET), 0);
    fputc (c, f);
    fclose (f);
  }
  cr_assert_eq (digest_list_check (&kept[0], &complete, &blocks, &error), 0);
  cr_assert_eq (truncate (paths[0], 24), 0);
  cr_assert_eq (digest_list_check (&kept[0], &complete, &blocks, &error), -1);
  text_free (error);
  cr_assert_eq (unlink (paths[0]), 0);
  cr_assert_eq (digest_list_check (&kept[0], &complete, &blocks, &error), -1);
  text_free (error);
  tear_down ();
}

static void
on_any (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  (void)opaque, (void)first, (void)digests, (void)nr;
}

Test (digest_list, only_what_fits_is_combined)
{
  uint8_t digest[DIGEST_SIZE] = { 1 };
  char *error = NULL;

  set_up ();
  end (begin (0, true, 10), 0);
  end (begin (1, true, 10), 1);
  cr_assert_eq (digest_list_combine (kept, 2, on_any, NULL, &error), -1); /* two complete ones */
  text_free (error);
  end (begin (1, false, 11), 1);
  cr_assert_eq (digest_list_combine (kept, 2, on_any, NULL, &error), -1); /* of another size */
  text_free (error);
  struct digest_list *l = begin (1, false, 10);
  digest_list_add (l, 10, digest, 1); /* behind the end of the disk */
  end (l, 1);
  cr_assert_eq (digest_list_combine (kept, 2, on_any, NULL, &error), -1);
  text_free (error);
  l = begin (1, false, 10);
  digest_list_add (l, 2, digest, 1);
  end (l, 1);
  cr_assert_eq (truncate (paths[1], 24 + 16 + 15), 0); /* within a run */
  cr_assert_eq (digest_list_combine (kept, 2, on_any, NULL, &error), -1);
  text_free (error);
  tear_down ();
}
