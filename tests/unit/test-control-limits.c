/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control server against clients that misbehave: each test has a well-behaved client as
 * well, which must go on being served.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/control-fixture.h"
#include "tests/unit/unit.h"

#define ECHO "{\"execute\": \"echo\"}\n"

static void
expect_service (int sock)
{
  json_t *m = raw_call (sock, ECHO);

  cr_assert_not_null (json_object_get (m, "return"), "the well-behaved client is not served");
  json_decref (m);
}

/* Skip the events CLOSED that the fixture sends. */
static void
expect_service_after_close (int sock)
{
  raw_send (sock, ECHO);
  for (;;) {
    json_t *m = raw_read (sock, NULL);
    bool answer = json_object_get (m, "return") != NULL;

    cr_assert_not_null (m);
    json_decref (m);
    if (answer)
      return;
  }
}

/* Send TEXT again and again until the server hangs up or *stop. */
struct flood {
  int sock;
  const char *text;
  bool read_too;
  atomic_bool stop;
  atomic_bool hung_up;
  pthread_t thread;
};

static void *
flood_thread (void *arg)
{
  struct flood *f = arg;
  size_t len = strlen (f->text), done = 0;

  while (!atomic_load (&f->stop)) {
    struct pollfd p = { .fd = f->sock, .events = POLLOUT };
    ssize_t n = send (f->sock, f->text + done, len - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    char buf[65536];

    if (n > 0)
      done = (done + (size_t)n) % len;
    else if (errno != EAGAIN) {
      atomic_store (&f->hung_up, true);
      break;
    }
    if (f->read_too) {
      p.events |= POLLIN;
      recv (f->sock, buf, sizeof buf, MSG_DONTWAIT);
    }
    if (n <= 0)
      poll (&p, 1, 20);
  }
  return NULL;
}

static void
flood_start (struct flood *f, int sock, const char *text, bool read_too)
{
  *f = (struct flood){ .sock = sock, .text = text, .read_too = read_too };
  cr_assert_eq (pthread_create (&f->thread, NULL, flood_thread, f), 0);
}

static void
flood_stop (struct flood *f)
{
  atomic_store (&f->stop, true);
  pthread_join (f->thread, NULL);
  close (f->sock);
}

/* Proves: a line that is too long is answered with an error and the end, though the client was
 * still sending; just below the limit all is well. */
control_test (limits, line_too_long)
{
  char *text = malloc (1000001);
  struct flood f;

  fixture_start (&fixture_limits);
  int good = raw_open ();
  int sock = raw_open ();
  memset (text, ' ', FRAME_MAX_LINE);
  memcpy (text, "{\"execute\": \"echo\"", 18);
  memcpy (text + FRAME_MAX_LINE - 1, "}\n", 3);
  json_t *m = raw_call (sock, text);
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);

  memset (text, 'x', 1000000);
  text[1000000] = '\0';
  flood_start (&f, sock, text, false);
  m = raw_read (sock, NULL);
  cr_assert_not_null (strstr (error_desc (m), "too long"), "%s", error_desc (m));
  json_decref (m);
  cr_assert (raw_ended (sock));
  wait_until (atomic_load (&fx.closed) == 1);
  flood_stop (&f);

  /* One that sends first and reads then is not hit by EPIPE before it has sent it all. */
  sock = raw_open ();
  text[500000] = '\0';
  raw_send (sock, text);
  m = raw_read (sock, NULL);
  cr_assert_not_null (strstr (error_desc (m), "too long"), "%s", error_desc (m));
  json_decref (m);
  cr_assert (raw_ended (sock));
  close (sock);
  expect_service_after_close (good);
  close (good);
  free (text);
}

/* Proves: a line that is begun must be finished in time, also when single bytes keep coming; a
 * client that says nothing at all may stay. */
control_test (limits, unfinished_line)
{
  fixture_start (&fixture_limits);
  int silent = raw_connect ();
  json_decref (raw_read (silent, NULL));
  int good = raw_open ();
  int stuck = raw_open ();
  int64_t begin = clock_ms ();
  raw_send (stuck, "{\"execute\"");
  json_t *m = raw_read (stuck, NULL);
  cr_assert_geq ((int64_t)(clock_ms () - begin), fixture_limits.line_ms - 1);
  cr_assert_not_null (strstr (error_desc (m), "not finished in time"));
  json_decref (m);
  cr_assert (raw_ended (stuck));

  int drip = raw_connect ();
  json_decref (raw_read (drip, NULL));
  begin = clock_ms ();
  while (send (drip, "x", 1, MSG_NOSIGNAL) == 1 && clock_ms () - begin < 5000)
    fixture_sleep_ms (5);
  cr_assert_lt (clock_ms () - begin, 5000, "dripping bytes kept it connected");

  wait_until (atomic_load (&fx.closed) == 2);
  m = raw_call (silent, "{\"execute\": \"qmp_capabilities\"}\n");
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  expect_service_after_close (good);
  close (silent);
  close (stuck);
  close (drip);
  close (good);
}

/* Proves: a server that was stopped for a while does not blame the clients for it. */
control_test (limits, own_stall_is_forgiven)
{
  fixture_start (&fixture_limits);
  int a = raw_open ();
  int b = raw_open ();
  raw_send (a, "{\"execute\": ");
  fixture_sleep_ms (50);
  raw_send (b, "{\"execute\": \"stall\", \"arguments\": {\"ms\": 1000}}\n");
  fixture_sleep_ms (50);
  raw_send (a, "\"echo\"}\n");
  json_t *m = raw_read (a, NULL);
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  json_decref (raw_read (b, NULL));
  cr_assert_eq (atomic_load (&fx.closed), 0);
  close (a);
  close (b);
}

/* Proves: a client that floods with commands, reading the answers or not, or with rubbish, neither
 * starves others nor makes a poll long. */
control_test (limits, floods)
{
  static const struct {
    const char *text;
    bool read_too;
  } kinds[] = { { ECHO ECHO ECHO ECHO ECHO ECHO ECHO ECHO, true },
                { ECHO ECHO ECHO ECHO ECHO ECHO ECHO ECHO, false },
                { "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n", false },
                { "x\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\n", true },
                { "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n", true } };
  enum { N = sizeof kinds / sizeof kinds[0] };
  struct flood f[N];
  int64_t worst = 0;

  fixture_start (&fixture_limits);
  int good = raw_open ();
  for (int i = 0; i < N; i++)
    flood_start (&f[i], raw_open (), kinds[i].text, kinds[i].read_too);
  for (int i = 0; i < 200; i++) {
    int64_t begin = clock_ms (), took;

    expect_service_after_close (good);
    took = clock_ms () - begin;
    if (took > worst)
      worst = took;
  }
  for (int i = 0; i < N; i++)
    flood_stop (&f[i]);
  fprintf (stderr, "worst answer %lld ms, most commands in one poll %u\n", (long long)worst,
           atomic_load (&fx.most_commands));
  /* Generous, for slow and busy machines. */
  cr_assert_lt (worst, 3000, "an answer took %lld ms", (long long)worst);
  cr_assert_leq (atomic_load (&fx.most_commands), (N + 1) * 32);
  close (good);
}

/* Proves: also commands that take their time do not make a poll long, and everybody gets a turn. */
control_test (limits, slow_commands)
{
  enum { N = 3, EACH = 30 };
  char lines[EACH * 60 + 1] = "";
  int socks[N];

  fixture_start (&fixture_limits);
  for (int i = 0; i < EACH; i++)
    strcat (lines, "{\"execute\": \"stall\", \"arguments\": {\"ms\": 15}}\n");
  for (int i = 0; i < N; i++)
    socks[i] = raw_open ();
  for (int i = 0; i < N; i++)
    raw_send (socks[i], lines);
  for (int i = 0; i < N; i++) {
    for (int k = 0; k < EACH; k++) {
      json_t *m = raw_read (socks[i], NULL);

      cr_assert_not_null (json_object_get (m, "return"));
      json_decref (m);
    }
  }
  for (int i = 0; i < N; i++)
    close (socks[i]);
  /* What fits into 50 ms, not all of one peer's. */
  cr_assert_leq (atomic_load (&fx.most_commands), 5, "%u in one poll",
                 atomic_load (&fx.most_commands));
}

/* Proves: a client that does not read its answers loses its connection after the time limit. */
control_test (limits, never_reads_answers)
{
  struct flood f;

  fixture_start (&fixture_limits);
  int good = raw_open ();
  flood_start (&f, raw_open (), ECHO, false);
  wait_until (atomic_load (&f.hung_up));
  flood_stop (&f);
  wait_until (atomic_load (&fx.closed) == 1);
  expect_service_after_close (good);
  close (good);
}

/* Proves: a client that does not read events loses its connection above the size limit, without
 * waiting for the time limit; one that reads gets them all. */
control_test (limits, never_reads_events)
{
  struct control_limits l = fixture_limits;
  unsigned events = 0;

  l.output_ms = 60000;
  fixture_start (&l);
  int good = raw_open ();
  int deaf = raw_open ();
  for (int round = 0; round < 3; round++) {
    raw_send (good, "{\"execute\": \"burst\", \"arguments\": {\"n\": 15, \"size\": 60000}}\n");
    for (bool answered = false; !answered;) {
      json_t *m = raw_read (good, NULL);

      cr_assert_not_null (m, "the reading client was dropped, too");
      answered = json_object_get (m, "return") != NULL;
      events += strcmp (json_string_value (json_object_get (m, "event")) ?: "", "BURST") == 0;
      json_decref (m);
    }
  }
  cr_assert_eq (events, 45);
  wait_until (atomic_load (&fx.closed) == 1);
  struct pollfd p = (struct pollfd){ .fd = deaf, .events = POLLIN };
  cr_assert_eq (poll (&p, 1, 0), 1);
  cr_assert (raw_ended (deaf));
  expect_service_after_close (good);
  close (good);
  close (deaf);
}

/* Proves: one caller that lets commands wait cannot pile up more than the limit of them. */
control_test (limits, unanswered_commands)
{
  struct flood f;

  fixture_start (&fixture_limits);
  int good = raw_open ();
  flood_start (&f, raw_open (), "{\"execute\": \"defer\", \"id\": 1}\n", true);
  wait_until (atomic_load (&fx.commands) >= 64);
  fixture_sleep_ms (200);
  unsigned ran = atomic_load (&fx.commands);
  cr_assert_leq (ran, 64, "%u", ran);
  expect_service (good);
  cr_assert_eq (atomic_load (&fx.closed), 0, "waiting for answers is no offence");
  flood_stop (&f);
  wait_until (atomic_load (&fx.closed) == 1);
  close (good);
}

/* Proves: a peer that asks for descriptors and does not take them cannot fill the server's table.
 */
control_test (limits, unread_descriptors)
{
  int sock, f = dup (0);
  unsigned most = 0;

  fixture_start (&fixture_limits);
  sock = raw_open ();
  unsigned before = count_fds ();
  uint64_t until = clock_ms () + 20000;
  while (atomic_load (&fx.commands) <= 100 && clock_ms () < until) {
    unsigned n;

    if (!raw_try_send_fd (sock, "{\"execute\": \"fd\"}\n", f))
      fixture_sleep_ms (1);
    n = count_fds ();
    if (n > most)
      most = n;
  }
  cr_assert_gt (atomic_load (&fx.commands), 100);
  cr_assert_leq (most, before + 8, "%u more", most - before);
  close (sock);
  wait_until (atomic_load (&fx.closed) == 1);
  close (f);
}

/* Proves: clients that come and go in every state leave nothing behind. */
control_test (limits, churn)
{
  unsigned n = 0;

  fixture_start (&fixture_limits);
  close (raw_open ());
  wait_until (atomic_load (&fx.closed) == 1);
  unsigned before = count_fds ();
  for (int i = 0; i < 300; i++) {
    int sock = raw_connect ();

    n++;
    switch (i % 6) {
    case 0:
      break; /* gone before the greeting is sent */
    case 1:
      json_decref (raw_read (sock, NULL));
      break;
    case 2:
      raw_send (sock, "{\"execute\"");
      break;
    case 3:
      raw_send (sock, "{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"defer\", \"id\": 1}\n");
      break;
    case 4:
      raw_send (sock, "{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"close\"}\n" ECHO);
      break;
    default:
      shutdown (sock, SHUT_RD);
      raw_send (sock, "{\"execute\": \"qmp_capabilities\"}\n" ECHO ECHO);
      break;
    }
    close (sock);
  }
  wait_until (atomic_load (&fx.closed) == n + 1);
  wait_until (count_fds () == before);
  wait_until (atomic_load (&fx.peers) == 0);
}
