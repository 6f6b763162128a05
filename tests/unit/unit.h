/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Include this instead of <criterion/criterion.h>.
 *
 * Criterion cannot start under ThreadSanitizer: the address at which it wants its memory is taken
 * ("Could not initialize inheritable arena").  There, this file stands in for the few macros that
 * the tests use: every test runs in turn in one process, and the first failure ends it.
 *
 * A source file without tests of its own, which is linked to one that has them, defines
 * UNIT_NO_TESTS first.
 */

#ifndef NBDMIRROR_TESTS_UNIT_UNIT_H
#define NBDMIRROR_TESTS_UNIT_UNIT_H

#if defined __has_feature
#if __has_feature(thread_sanitizer)
#define UNIT_THREAD_SANITIZER 1
#endif
#elif defined __SANITIZE_THREAD__
#define UNIT_THREAD_SANITIZER 1
#endif

#ifndef UNIT_THREAD_SANITIZER

#include <criterion/criterion.h>

#else

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef UNIT_NO_TESTS

struct unit_test {
  const char *suite, *name;
  void (*run) (void);
  struct unit_test *next;
};

static struct unit_test *unit_tests;

#define Test(suite_, name_, ...)                                                                   \
  static void test_##suite_##_##name_ (void);                                                      \
  static void __attribute__ ((constructor)) test_##suite_##_##name_##_register (void)              \
  {                                                                                                \
    static struct unit_test t = { #suite_, #name_, test_##suite_##_##name_, NULL };                \
    t.next = unit_tests;                                                                           \
    unit_tests = &t;                                                                               \
  }                                                                                                \
  static void test_##suite_##_##name_ (void)

#endif

static inline void __attribute__ ((format (printf, 4, 5), noreturn))
unit_fail (const char *file, int line, const char *what, const char *fmt, ...)
{
  va_list ap;

  fprintf (stderr, "%s:%d: failed: %s:", file, line, what);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fputc ('\n', stderr);
  abort ();
}

#define unit_check(cond, what, ...)                                                                \
  ((cond) ? (void)0 : unit_fail (__FILE__, __LINE__, what, " " __VA_ARGS__))
#define cr_assert(c, ...) unit_check (c, #c, __VA_ARGS__)
#define cr_expect(c, ...) unit_check (c, #c, __VA_ARGS__)
#define cr_assert_not(c, ...) unit_check (!(c), "not " #c, __VA_ARGS__)
#define cr_assert_eq(a, b, ...) unit_check ((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) unit_check ((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) unit_check ((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) unit_check ((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) unit_check ((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) unit_check ((a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, eps, ...)                                                         \
  unit_check ((a) - (b) <= (eps) && (b) - (a) <= (eps), #a " is about " #b, __VA_ARGS__)
#define cr_assert_null(p, ...) unit_check ((p) == NULL, #p " is NULL", __VA_ARGS__)
#define cr_assert_not_null(p, ...) unit_check ((p) != NULL, #p " is not NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) unit_check (strcmp (a, b) == 0, #a " is " #b, __VA_ARGS__)

/* Leave the test out, from within its function. */
#define cr_skip_test(reason)                                                                       \
  do {                                                                                             \
    fprintf (stderr, "skipped: %s\n", reason);                                                     \
    return;                                                                                        \
  } while (0)

#ifndef UNIT_NO_TESTS

int
main (void)
{
  for (struct unit_test *t = unit_tests; t != NULL; t = t->next) {
    fprintf (stderr, "%s::%s\n", t->suite, t->name);
    t->run ();
  }
  return 0;
}

#endif
#endif
#endif
