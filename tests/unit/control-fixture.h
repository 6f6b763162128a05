/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * For the tests of the control protocol: a server in a thread, with commands that exercise it, and
 * raw clients that send any bytes.
 *
 * The server's commands:
 *   echo            returns its arguments
 *   fd              returns {"inode": N} and the descriptor that came with it, or {"none": true}
 *   event           emits EVENT with the arguments to everybody, and returns {}
 *   burst           {"n", "size"}: emits that many events of that size at once
 *   defer, answer   "defer" is answered when somebody sends "answer"
 *   close           closes the sender after a reply
 *   close-serial    {"serial"}: closes another one
 *   serial          returns {"serial": N}
 *   worker          marks the sender as the worker
 *   needed          something ends with the sender's connection
 *   large           {"size"}: returns a string of that size
 *   odd             an error whose text is not UTF-8
 *   stall           {"ms"}: the server's thread sleeps
 */

#ifndef NBDMIRROR_TESTS_UNIT_CONTROL_FIXTURE_H
#define NBDMIRROR_TESTS_UNIT_CONTROL_FIXTURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <jansson.h>

#include "control/peer.h"
#include "tests/unit/unit.h"

struct fixture {
  char dir[64];
  char path[108];
  struct control_server *server; /* NULL until started */
  atomic_uint commands, closed, polls, peers;
  atomic_uint most_commands; /* run in one poll */
};

extern struct fixture fx;

/* A test with a directory of its own, which is removed afterwards (the server is ended as well). */
void fixture_init (void);
void fixture_fini (void);
#ifndef UNIT_THREAD_SANITIZER
#define control_test(suite_, name_)                                                                \
  Test (suite_, name_, .init = fixture_init, .fini = fixture_fini, .timeout = 60)
#define skip_test(reason_)                                                                         \
  do {                                                                                             \
    fixture_fini (); /* criterion leaves it out then */                                            \
    cr_skip_test (reason_);                                                                        \
  } while (0)
#else
#define control_test(suite_, name_)                                                                \
  static void suite_##_##name_##_ (void);                                                          \
  Test (suite_, name_)                                                                             \
  {                                                                                                \
    fixture_init ();                                                                               \
    suite_##_##name_##_ ();                                                                        \
    fixture_fini ();                                                                               \
  }                                                                                                \
  static void suite_##_##name_##_ (void)
#define skip_test(reason_) cr_skip_test (reason_)
#endif

/* Start the server's thread.  LIMITS NULL means the default ones. */
void fixture_start (const struct control_limits *limits);
void fixture_stop (void);
extern const struct control_limits fixture_limits; /* the default ones with short times */

/* Wait until CONDITION holds, at most some seconds. */
#define wait_until(condition)                                                                      \
  do {                                                                                             \
    for (int tries_ = 0; !(condition) && tries_ < 1000; tries_++)                                  \
      fixture_sleep_ms (10);                                                                       \
    cr_assert (condition, "never came true: %s", #condition);                                      \
  } while (0)
void fixture_sleep_ms (int ms);

/* Raw clients.  raw_connect only connects, raw_open also reads the greeting and negotiates. */
int raw_connect (void);
int raw_open (void);
void raw_send (int sock, const char *text); /* as it is, all of it */
void raw_send_fds (int sock, const char *text, const int *fds, unsigned nr_fds);
bool raw_try_send_fd (int sock, const char *text, int fd); /* false if it would block */
json_t *raw_read (int sock, int *got_fd);                  /* one line, NULL at the end */
json_t *raw_call (int sock, const char *line);             /* send, then read one line */
bool raw_ended (int sock);                                 /* end of stream, within seconds */

/* What M says, for comparisons; NULL if it is no error. */
const char *error_class (const json_t *m);
const char *error_desc (const json_t *m);

/* Open descriptors of this process. */
unsigned count_fds (void);

#endif
