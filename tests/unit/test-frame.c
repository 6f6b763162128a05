/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Framing: whatever bytes arrive, however they are cut up, every line gives one result and the line
 * after it is understood again.
 */

#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "control/frame.h"
#include "tests/unit/unit.h"

#define GOOD "{\"good\": 1}"

static void
append (struct frame_buffer *b, const char *text)
{
  cr_assert_eq (frame_append (b, text, strlen (text)), 0);
}

/* The next result must be an object with this integer member. */
static void
expect_member (struct frame_buffer *b, const char *key, json_int_t value)
{
  char *error;
  json_t *j;

  cr_assert_eq (frame_next (b, &j, &error), FRAME_OBJECT, "no object");
  cr_assert_eq (json_integer_value (json_object_get (j, key)), value);
  json_decref (j);
}

static void
expect_none (struct frame_buffer *b)
{
  char *error;
  json_t *j;

  cr_assert_eq (frame_next (b, &j, &error), FRAME_NONE);
}

/* Proves: an object is found only at its newline, however the bytes were cut. */
Test (frame, byte_by_byte)
{
  const char *text = "{\"a\": 7}\n{\"a\": 8}\n";
  struct frame_buffer b;
  int found = 0;

  frame_init (&b);
  for (const char *p = text; *p != '\0'; p++) {
    cr_assert_eq (frame_append (&b, p, 1), 0);
    if (*p == '\n')
      expect_member (&b, "a", 7 + found++);
    else
      cr_assert (frame_partial (&b));
    expect_none (&b);
  }
  cr_assert_eq (found, 2);
  cr_assert (!frame_partial (&b));
  frame_free (&b);
}

/* Proves: several lines in one piece come out one by one, blank ones and CR LF do no harm. */
Test (frame, several_lines)
{
  struct frame_buffer b;

  frame_init (&b);
  append (&b, "\n\r\n  \t\n{\"a\": 1}\r\n\n\n{\"a\": 2}\n \n{\"a\"");
  expect_member (&b, "a", 1);
  expect_member (&b, "a", 2);
  expect_none (&b);
  cr_assert (frame_partial (&b));
  append (&b, ": 3}\n");
  expect_member (&b, "a", 3);
  expect_none (&b);
  cr_assert (!frame_partial (&b));
  frame_free (&b);
}

/* BAD is one line (without newline) that is no JSON object. */
static void
expect_bad_then_good (const char *bad, size_t len)
{
  struct frame_buffer b;
  char *error;
  json_t *j;

  frame_init (&b);
  cr_assert_eq (frame_append (&b, bad, len), 0);
  append (&b, "\n" GOOD "\n");
  cr_assert_eq (frame_next (&b, &j, &error), FRAME_BAD, "taken for good: %.40s", bad);
  cr_assert_null (j);
  cr_assert (error != NULL && *error != '\0', "no message for %.40s", bad);
  text_free (error);
  expect_member (&b, "good", 1);
  expect_none (&b);
  frame_free (&b);
}

/* Proves: each kind of bad line is refused with a message, and the next line is read. */
Test (frame, bad_lines)
{
  static const char *const bad[] = {
    "hello",
    "{",
    "}",
    "{\"execute\": \"query",
    "{\"execute\": }",
    "{'execute': 'x'}",
    "{\"a\": 1} {\"b\": 2}",
    "{\"a\": 1, \"a\": 2}",
    "{\"a\": 1e999}",
    "{\"a\": 99999999999999999999999999}",
    "{\"a\": -99999999999999999999999999}",
    "{\"a\": 0x10}",
    "{\"a\": NaN}",
    "{\"a\": \"\\u0000\"}",
    "{\"a\": \"\\ud800\"}",
    "{\"a\": \"\xff\xfe\"}",
    "{\"a\": \"\xc0\x80\"}",
    "{\"a\": \"\xed\xa0\x80\"}",
    "{\"a\": \"\t\"}",
    "\xef\xbb\xbf{}",
    "[]",
    "[{\"execute\": \"x\"}]",
    "\"execute\"",
    "1",
    "null",
    "true",
  };
  char zero[] = "{\"a\": \"x\0y\"}";

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    expect_bad_then_good (bad[i], strlen (bad[i]));
  expect_bad_then_good (zero, sizeof zero - 1);
  expect_bad_then_good ("\0", 1);
}

/* Proves: nesting as deep as a line allows neither overflows the stack nor passes. */
Test (frame, deep_nesting)
{
  static const char *const open[] = { "[", "{\"a\":" };
  char *line = malloc (FRAME_MAX_LINE);

  for (size_t k = 0; k < 2; k++) {
    size_t n = strlen (open[k]), len = 0;

    while (len + n <= FRAME_MAX_LINE) {
      memcpy (line + len, open[k], n);
      len += n;
    }
    expect_bad_then_good (line, len);
  }
  /* Balanced, too. */
  memset (line, '[', FRAME_MAX_LINE / 2);
  memset (line + FRAME_MAX_LINE / 2, ']', FRAME_MAX_LINE / 2);
  expect_bad_then_good (line, FRAME_MAX_LINE);
  free (line);
}

/* A line of LEN bytes: {"a":1 and spaces and }. */
static char *
long_line (size_t len)
{
  char *line = malloc (len + 2);

  memset (line, ' ', len);
  memcpy (line, "{\"a\": 1", 7);
  line[len - 1] = '}';
  line[len] = '\n';
  line[len + 1] = '\0';
  return line;
}

/* Proves: the limit is exact, and holds with and without a newline in the buffer. */
Test (frame, length_limit)
{
  struct frame_buffer b;
  char *error;
  json_t *j;

  frame_init (&b);
  char *line = long_line (FRAME_MAX_LINE);
  append (&b, line);
  free (line);
  expect_member (&b, "a", 1);
  cr_assert_eq (b.len, 0);

  line = long_line (FRAME_MAX_LINE + 1);
  append (&b, line);
  cr_assert_eq (frame_next (&b, &j, &error), FRAME_TOO_LONG);
  frame_free (&b);

  cr_assert_eq (frame_append (&b, line, FRAME_MAX_LINE), 0);
  expect_none (&b);
  cr_assert_eq (frame_append (&b, "x", 1), 0);
  cr_assert_eq (frame_next (&b, &j, &error), FRAME_TOO_LONG);
  frame_free (&b);
  free (line);
}

/* Proves: what is encoded is one line, whatever the strings hold, and reads back the same. */
Test (frame, encode_round_trip)
{
  json_t *j = json_pack ("{s:s, s:s, s:[i,f,b,n], s:I}", "nl", "a\nb\r\n\"\\", "utf8",
                         "d\xc3\xa9j\xc3\xa0", "list", 1, 0.25, 1, "big", (json_int_t)INT64_MAX);
  struct frame_buffer b;
  char *error;
  json_t *back;
  size_t len;

  char *line = frame_encode (j, &len);
  cr_assert_not_null (line);
  cr_assert_eq (strlen (line), len);
  cr_assert_eq (memchr (line, '\n', len), line + len - 1);
  frame_init (&b);
  cr_assert_eq (frame_append (&b, line, len), 0);
  cr_assert_eq (frame_next (&b, &back, &error), FRAME_OBJECT);
  cr_assert (json_equal (j, back));
  json_decref (j);
  json_decref (back);
  free (line);
  frame_free (&b);
}

static uint64_t
next_random (uint64_t *x)
{
  *x ^= *x << 13;
  *x ^= *x >> 7;
  *x ^= *x << 17;
  return *x;
}

/* Feed a piece in random cuts and count the results until nothing is left. */
static void
feed (struct frame_buffer *b, const char *data, size_t len, uint64_t *x, unsigned *objects,
      unsigned *bad)
{
  size_t done = 0;

  while (done < len) {
    size_t n = 1 + next_random (x) % 200;
    enum frame_result r;
    char *error;
    json_t *j;

    if (n > len - done)
      n = len - done;
    cr_assert_eq (frame_append (b, data + done, n), 0);
    done += n;
    while ((r = frame_next (b, &j, &error)) != FRAME_NONE) {
      cr_assert (r == FRAME_OBJECT || r == FRAME_BAD, "result %d", (int)r);
      if (r == FRAME_OBJECT) {
        cr_assert (json_is_object (j));
        json_decref (j);
        (*objects)++;
      } else {
        cr_assert_not_null (error);
        text_free (error);
        (*bad)++;
      }
    }
  }
}

/* Proves: random bytes and damaged commands never crash it, give one result a line at most, and a
 * good line after a newline is always understood. */
Test (frame, fuzz)
{
  static const char seed_line[]
      = "{\"execute\": \"block-job-set-speed\", \"arguments\": {\"device\": \"mirror\", \"speed\": "
        "1048576, \"x\": [1, 2.5e3, null, true, {\"\\u00e9\": \"\xc3\xa9\"}]}, \"id\": \"a\\n\"}";
  uint64_t x = 88172645463325252u;
  unsigned total_bad = 0, total_objects = 0;

  for (int round = 0; round < 20000; round++) {
    unsigned objects = 0, bad = 0;
    struct frame_buffer b;
    char data[600];
    size_t len, lines = 0;

    frame_init (&b);
    if (round % 2 == 0) {
      len = next_random (&x) % 500;
      for (size_t i = 0; i < len; i++)
        data[i] = (char)next_random (&x);
    } else {
      len = sizeof seed_line - 1;
      memcpy (data, seed_line, len);
      for (uint64_t k = next_random (&x) % 4; k > 0; k--)
        data[next_random (&x) % len] = (char)next_random (&x);
      if (next_random (&x) % 4 == 0)
        len = next_random (&x) % len;
    }
    for (size_t i = 0; i < len; i++)
      lines += data[i] == '\n';
    data[len++] = '\n';
    feed (&b, data, len, &x, &objects, &bad);
    cr_assert (objects + bad <= lines + 1);
    cr_assert (!frame_partial (&b));
    total_bad += bad;
    total_objects += objects;
    append (&b, GOOD "\n");
    expect_member (&b, "good", 1);
    expect_none (&b);
    frame_free (&b);
  }
  /* The fuzzer reached both sides. */
  cr_assert (total_bad > 1000, "%u", total_bad);
  cr_assert (total_objects > 1000, "%u", total_objects);
}
