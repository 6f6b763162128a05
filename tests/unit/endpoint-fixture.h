/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * For the tests of endpoints: a directory of their own, and requests that are done to their end.
 */

#ifndef NBDMIRROR_TESTS_UNIT_ENDPOINT_FIXTURE_H
#define NBDMIRROR_TESTS_UNIT_ENDPOINT_FIXTURE_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/endpoint.h"
#include "tests/unit/unit.h"

#define PYTHON "/usr/bin/python3"

extern char dir[100]; /* on a real disk, removed afterwards */

void endpoint_setup (void);
void endpoint_teardown (void);

/* Criterion runs setup and teardown (also when the test fails); its stand-in does not. */
#ifdef UNIT_THREAD_SANITIZER
#define ENDPOINT_TEST(name)                                                                        \
  static void endpoint_##name (void);                                                              \
  Test (endpoint, name)                                                                            \
  {                                                                                                \
    endpoint_setup ();                                                                             \
    endpoint_##name ();                                                                            \
    endpoint_teardown ();                                                                          \
  }                                                                                                \
  static void endpoint_##name (void)
#else
#define ENDPOINT_TEST(name)                                                                        \
  Test (endpoint, name, .init = endpoint_setup, .fini = endpoint_teardown, .timeout = 60)
#endif

extern const struct endpoint_options ro, rw;

/* The path of NAME in the directory; valid until the next call. */
const char *in_dir (const char *name);

/* NAME is one name, or a command with its words separated by spaces, brackets included; the word
 * FAKE in it is the fake server. */
struct endpoint *try_open (const char *name, const struct endpoint_options *opts, int *errnum,
                           char **error);
struct endpoint *must_open (const char *name, const struct endpoint_options *opts);
/* NAME cannot be opened: the message contains TEXT, and the errno is ERR. */
void refused (const char *name, const struct endpoint_options *opts, int err, const char *text);
struct channel *must_channel (struct endpoint *ep);

struct answer {
  unsigned nr; /* completions so far */
  int error;   /* of the last */
  int errors[100];
  bool inside; /* set while a request is being started */
  unsigned nr_extents;
  struct endpoint_extent extents[64];
};

enum what { READ, WRITE, ZERO, ZERO_ALLOCATED, FLUSH, STATUS, FIRST_EXTENT };

/* Drive CH until A has NR completions; false when it is dead. */
bool drive (struct channel *ch, struct answer *a, unsigned nr);
int start (struct channel *ch, enum what what, void *buf, uint64_t len, uint64_t offset,
           struct answer *a);
/* Do one request to its end; its errno. */
int request (struct channel *ch, enum what what, void *buf, uint64_t len, uint64_t offset);
void *buffer (size_t len);
void fill (unsigned char *buf, size_t len, uint64_t offset);
/* Write the pattern to all of EP, in requests of STEP bytes, many at a time; flush. */
void write_all (struct endpoint *ep, size_t step);
/* Read it back and compare. */
void check_all (struct endpoint *ep, size_t step);
/* False, with a notice, where it is missing. */
bool have_nbdkit (void);
bool have_python (void);
/* Several threads, each with its channel, read and compare all of EP. */
void threads (struct endpoint *ep);

#endif
