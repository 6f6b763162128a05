/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Runs a fuzzer's function with the inputs that are kept, and with many that are made of them by
 * simple changes, so that it can be run without clang: replay [-n ROUNDS] FILE...
 */

#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#define MOST (64u << 10)

static uint64_t rng = 88172645463325252u;

static uint64_t
random_below (uint64_t n)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng % n;
}

static void
change (uint8_t *data, size_t *size)
{
  for (uint64_t n = 1 + random_below (4); n > 0; n--)
    switch (random_below (4)) {
    case 0: /* a bit */
      data[random_below (*size)] ^= (uint8_t)(1u << random_below (8));
      break;
    case 1: /* a byte */
      data[random_below (*size)] = (uint8_t)random_below (256);
      break;
    case 2: /* shorter */
      *size = 1 + random_below (*size);
      break;
    default: /* one more change */
      for (unsigned i = 0; i < 12 && *size < MOST; i++)
        data[(*size)++] = (uint8_t)random_below (i == 3 ? 9 : 256);
    }
}

static int
run_file (const char *path, unsigned long rounds)
{
  static uint8_t kept[MOST], data[MOST];
  FILE *f = fopen (path, "r");

  if (f == NULL) {
    perror (path);
    return 1;
  }
  size_t size = fread (kept, 1, sizeof kept, f);
  fclose (f);
  LLVMFuzzerTestOneInput (kept, size);
  for (unsigned long i = 0; i < rounds && size > 0; i++) {
    size_t changed = size;
    memcpy (data, kept, size);
    change (data, &changed);
    LLVMFuzzerTestOneInput (data, changed);
  }
  return 0;
}

int
main (int argc, char **argv)
{
  unsigned long rounds = 0;
  int option, r = 0;

  while ((option = getopt (argc, argv, "n:")) != -1)
    if (option == 'n')
      rounds = strtoul (optarg, NULL, 10);
    else
      return 2;
  int first = optind; /* what is tested may use getopt as well */
  for (int i = first; i < argc; i++)
    r |= run_file (argv[i], rounds);
  printf ("%d inputs, %lu changes to each\n", argc - first, rounds);
  return r;
}
