/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Endpoints: a real NBD server (nbdkit) and one that goes wrong on demand (fake-nbd-server.py),
 * both run by the endpoint itself as `[ COMMAND ]`.
 */

#include "config.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mirror/endpoint/nbd.h"
#include "mirror/job/sync.h"
#include "tests/unit/unit.h"
#include "tests/unit/endpoint-fixture.h"

/* A session whose beginning was not answered is tried again by the same name: the server may have
 * let it in, or may never have heard of it. */
Test (endpoint, session_names)
{
  struct endpoint_session s = { .answered = false };
  char first[2 * ENDPOINT_SESSION], second[2 * ENDPOINT_SESSION], third[2 * ENDPOINT_SESSION];
  char expected[sizeof s.id + sizeof first + 1];

  cr_assert (nbd_session_name (first, &s));
  cr_assert_str_eq (first, s.id);
  cr_assert_eq (strlen (first), ENDPOINT_SESSION - 1);
  cr_assert (nbd_session_name (second, &s));
  cr_assert_str_eq (second, first);

  s.answered = true;
  cr_assert (nbd_session_name (second, &s));
  cr_assert (strcmp (s.id, first) != 0);
  snprintf (expected, sizeof expected, "%s.%s", s.id, first);
  cr_assert_str_eq (second, expected);
  cr_assert (nbd_session_name (third, &s));
  cr_assert_str_eq (third, second);

  cr_assert (nbd_session_name (first, NULL) && nbd_session_name (second, NULL));
  cr_assert (strcmp (first, second) != 0);
}

/* ---- NBD, with nbdkit ------------------------------------------------------------------- */

/* What is written to an export is read back, by many connections too. */
ENDPOINT_TEST (nbd_data)
{
  if (!have_nbdkit ())
    return;
  struct endpoint *ep = must_open ("[ nbdkit --exit-with-parent memory 1048577 ]", &rw);
  cr_assert (endpoint_info (ep)->size == 1048577 && endpoint_info (ep)->is_nbd);
  cr_assert (endpoint_info (ep)->can_multi_conn && endpoint_info (ep)->can_flush);
  write_all (ep, 4096);
  check_all (ep, 65536);
  threads (ep);
  endpoint_close (ep);
}

/* One request in flight on each connection, several connections: the room is theirs together. */
ENDPOINT_TEST (nbd_several_connections)
{
  struct endpoint_options opts = { .writable = true, .nr_in_flight = 1 };

  if (!have_nbdkit ())
    return;
  struct endpoint *ep = must_open ("[ nbdkit --exit-with-parent memory 1M ]", &opts);
  struct channel *ch = must_channel (ep);
  cr_assert (channel_room (ch) == 4);
  channel_close (ch);
  write_all (ep, 4096);
  threads (ep);
  endpoint_close (ep);
}

/* A server is known to admit so many connections: a channel that is closed makes room for another
 * one. */
ENDPOINT_TEST (nbd_admitted)
{
  if (!have_nbdkit ())
    return;
  for (unsigned admitted = 1; admitted <= 3; admitted++) {
    struct endpoint_options opts = { .writable = true, .nr_channels = 4, .nr_admitted = admitted };
    struct endpoint *ep = must_open ("[ nbdkit --exit-with-parent memory 1M ]", &opts);

    for (unsigned turn = 0; turn < 3; turn++) {
      struct channel *ch[3];
      char *error = NULL;
      int errnum = 0;

      channel_close (must_channel (ep));
      for (unsigned i = 0; i < admitted; i++)
        ch[i] = must_channel (ep);
      cr_assert (channel_open (ep, &errnum, &error) == NULL, "one more than %u", admitted);
      cr_assert (errnum == ENDPOINT_FULL, "%s", error);
      text_free (error);
      for (unsigned i = 0; i < admitted; i++)
        channel_close (ch[i]);
    }
    endpoint_close (ep);
  }
}

/* The attempt beside the first connection was refused: it says nothing once that one is closed. */
ENDPOINT_TEST (nbd_only_one)
{
  struct endpoint_options opts = { .writable = true, .nr_channels = 2 };

  if (!have_nbdkit ())
    return;
  struct endpoint *ep
      = must_open ("[ nbdkit --exit-with-parent --filter=limit memory 1M limit=1 ]", &opts);
  for (unsigned turn = 0; turn < 3; turn++)
    channel_close (must_channel (ep));
  endpoint_close (ep);
}

/* nbdkit at a TCP port of its own. */
static pid_t
serve_tcp (char uri[64])
{
  struct sockaddr_in a
      = { .sin_family = AF_INET, .sin_addr.s_addr = htonl (INADDR_LOOPBACK), .sin_port = 0 };
  socklen_t len = sizeof a;
  char pid[20];
  int fd = socket (AF_INET, SOCK_STREAM, 0);

  cr_assert (fd != -1 && bind (fd, (struct sockaddr *)&a, sizeof a) == 0 && listen (fd, 16) == 0
             && getsockname (fd, (struct sockaddr *)&a, &len) == 0);
  snprintf (uri, 64, "nbd://127.0.0.1:%d", ntohs (a.sin_port));
  pid_t child = fork ();
  cr_assert (child != -1);
  if (child == 0) {
    snprintf (pid, sizeof pid, "%d", (int)getpid ());
    setenv ("LISTEN_PID", pid, 1);
    setenv ("LISTEN_FDS", "1", 1);
    dup2 (fd, 3);
    execlp ("nbdkit", "nbdkit", "--exit-with-parent", "memory", "1M", NULL);
    _exit (127);
  }
  close (fd);
  return child;
}

static int
socket_option (int fd, int level, int option)
{
  int value = -1;
  socklen_t len = sizeof value;

  cr_assert (getsockopt (fd, level, option, &value, &len) == 0);
  return value;
}

/* A job that is at rest asks nothing of a server: the kernel asks whether its host is there. */
ENDPOINT_TEST (nbd_keepalive)
{
  struct pollfd fds[CHANNEL_MAX_FDS];
  char uri[64];
  int timeout = -1;

  if (!have_nbdkit ())
    return;
  pid_t server = serve_tcp (uri);
  struct endpoint *ep = must_open (uri, &rw);
  struct channel *ch = must_channel (ep);
  cr_assert (channel_pollfds (ch, fds, CHANNEL_MAX_FDS, &timeout) == 1);
  cr_assert (socket_option (fds[0].fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
  cr_assert (socket_option (fds[0].fd, IPPROTO_TCP, TCP_KEEPIDLE) == 30);
  cr_assert (socket_option (fds[0].fd, IPPROTO_TCP, TCP_KEEPINTVL) == 10);
  cr_assert (socket_option (fds[0].fd, IPPROTO_TCP, TCP_KEEPCNT) == 3);
  channel_close (ch);
  endpoint_close (ep);
  kill (server, SIGTERM);
  waitpid (server, NULL, 0);
}

/* A base image that somebody else serves: one request in flight on each connection. */
ENDPOINT_TEST (nbd_of_others)
{
  const struct endpoint_options eo = { .writable = false };
  char uri[64], *error = NULL;

  if (!have_nbdkit ())
    return;
  pid_t server = serve_tcp (uri);
  struct endpoint *ep = sync_open_image (uri, NULL, &eo, &error);
  cr_assert (ep != NULL, "%s", error);
  struct channel *ch = must_channel (ep);
  cr_assert (channel_room (ch) == channel_connections (ch));
  channel_close (ch);
  endpoint_close (ep);
  kill (server, SIGTERM);
  waitpid (server, NULL, 0);
}

/* Zeroes are written as such, and the status of a sparse export is told. */
ENDPOINT_TEST (nbd_zero_and_status)
{
  struct answer a = { 0 };
  unsigned char *buf = buffer (65536);

  if (!have_nbdkit ())
    return;
  struct endpoint *ep = must_open ("[ nbdkit --exit-with-parent memory 6G ]", &rw);
  struct channel *ch = must_channel (ep);
  memset (buf, 1, 65536);
  cr_assert (endpoint_info (ep)->can_status && endpoint_info (ep)->can_zero);
  cr_assert (request (ch, WRITE, buf, 65536, 65536) == 0);
  /* Longer than what is asked for in one go. */
  cr_assert (start (ch, STATUS, NULL, UINT64_C (6) << 30, 0, &a) == 0 && drive (ch, &a, 1));
  cr_assert (a.error == 0 && a.nr_extents == 3, "error %d, %u extents", a.error, a.nr_extents);
  cr_assert (a.extents[0].length == 65536 && a.extents[0].zero);
  cr_assert (a.extents[1].length == 65536 && !a.extents[1].zero);
  cr_assert (a.extents[2].length <= UINT64_C (2) << 30 && a.extents[2].zero);
  cr_assert (start (ch, FIRST_EXTENT, NULL, 1 << 20, 0, &a) == 0 && drive (ch, &a, 2));
  cr_assert (a.nr_extents == 1 && a.extents[0].length == 65536 && a.extents[0].zero);
  cr_assert (request (ch, ZERO, NULL, 1 << 30, 0) == 0);
  cr_assert (request (ch, READ, buf, 65536, 65536) == 0);
  for (unsigned i = 0; i < 65536; i++)
    cr_assert (buf[i] == 0);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* The layers of an image: both meta contexts of one answer, put together. */
ENDPOINT_TEST (nbd_layers)
{
  struct answer a = { 0 };
  char where[] = "/tmp/nbdmirror-layers.XXXXXX", make[600], with[120], without[120], clean[60];
  const struct endpoint_options layers = { .layers = true };
  /* The last one: nobody has ever written there. */
  static const struct endpoint_extent want[] = {
    { .length = 256 << 10, .lower = true },  { .length = 128 << 10, .zero = true },
    { .length = 128 << 10, .lower = true },  { .length = 1 << 20 },
    { .length = 14848 << 10, .zero = true },
  };

  if (system ("qemu-nbd --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1") != 0)
    return;
  cr_assert_not_null (mkdtemp (where));
  snprintf (make, sizeof make,
            "cd %s && qemu-img create -q -f qcow2 base 16M"
            " && qemu-img create -q -f qcow2 -b base -F qcow2 top"
            " && qemu-io -f qcow2 -c 'write 0 1M' base >log"
            " && qemu-io -f qcow2 -c 'write 512k 1M' -c 'write -z 256k 128k' top >log",
            where);
  snprintf (with, sizeof with, "[ qemu-nbd -A -r -f qcow2 %s/top ]", where);
  snprintf (without, sizeof without, "[ qemu-nbd -r -f qcow2 %s/top ]", where);
  snprintf (clean, sizeof clean, "rm -r %s", where);
  cr_assert_eq (system (make), 0);

  struct endpoint *ep = must_open (with, &layers);
  struct channel *ch = must_channel (ep);
  cr_assert (endpoint_info (ep)->can_layers);
  cr_assert (start (ch, STATUS, NULL, 16 << 20, 0, &a) == 0 && drive (ch, &a, 1));
  cr_assert_eq (a.nr_extents, 5, "%u extents", a.nr_extents);
  for (unsigned i = 0; i < 5; i++)
    cr_assert (a.extents[i].length == want[i].length && a.extents[i].zero == want[i].zero
                   && a.extents[i].lower == want[i].lower,
               "extent %u", i);
  channel_close (ch);
  endpoint_close (ep);

  ep = must_open (without, &layers);
  cr_assert (endpoint_info (ep)->can_status && !endpoint_info (ep)->can_layers);
  endpoint_close (ep);
  cr_assert_eq (system (clean), 0);
}

/* An empty export can be opened and flushed. */
ENDPOINT_TEST (nbd_empty)
{
  if (!have_nbdkit ())
    return;
  struct endpoint *ep = must_open ("[ nbdkit --exit-with-parent memory 0 ]", &rw);
  cr_assert (endpoint_info (ep)->size == 0);
  write_all (ep, 4096);
  check_all (ep, 4096);
  endpoint_close (ep);
}

/* ---- NBD, with a server that goes wrong --------------------------------------------------- */

#define FAKE "[ " PYTHON " FAKE --activated --size 1M "

/* Whatever a server does instead of the handshake, opening ends, in time, and says why. */
ENDPOINT_TEST (bad_handshakes)
{
  struct endpoint_options hasty = { .writable = true, .connect_timeout_ms = 1000 };

  if (!have_python ())
    return;
  refused (FAKE "--handshake close ]", &rw, ECONNRESET, "closed the connection");
  refused (FAKE "--handshake bad-magic ]", &rw, EPROTO, "magic");
  refused (FAKE "--handshake hello-close ]", &rw, ECONNRESET, "closed the connection");
  refused (FAKE "--read-only ]", &rw, EROFS, "the export is read-only");
  int64_t begin = clock_ms ();
  refused (FAKE "--handshake hang ]", &hasty, ETIMEDOUT, "within 1 s");
  refused (FAKE "--handshake hello-hang ]", &hasty, ETIMEDOUT, "within 1 s");
  cr_assert (clock_ms () - begin >= 1900 && clock_ms () - begin < 4000);
}

/* What the export offers is told as it is. */
ENDPOINT_TEST (limits)
{
  if (!have_python ())
    return;
  struct endpoint *ep = must_open (
      FAKE "--no-flush --no-zero --no-structured --min-block 4k --max-block 1M ]", &rw);
  cr_assert (!endpoint_info (ep)->can_flush && !endpoint_info (ep)->can_zero);
  cr_assert (!endpoint_info (ep)->can_status && !endpoint_info (ep)->can_multi_conn);
  cr_assert (endpoint_info (ep)->min_block == 4096);
  cr_assert (endpoint_info (ep)->max_request == 1 << 20);
  endpoint_close (ep);
  ep = must_open (FAKE "--multi-conn ]", &rw);
  cr_assert (endpoint_info (ep)->can_flush && endpoint_info (ep)->can_zero);
  cr_assert (endpoint_info (ep)->can_status && endpoint_info (ep)->can_multi_conn);
  cr_assert (endpoint_info (ep)->min_block == 1 && endpoint_info (ep)->max_request == 32 << 20);
  write_all (ep, 65536);
  check_all (ep, 65536);
  endpoint_close (ep);
}

/* Another connection must find the same export. */
ENDPOINT_TEST (another_size)
{
  char *error = NULL;
  int errnum = 0;

  if (!have_python ())
    return;
  struct endpoint *ep = must_open (FAKE "--multi-conn --later-size 512k ]", &rw);
  struct channel *ch = must_channel (ep);
  cr_assert (channel_open (ep, &errnum, &error) == NULL);
  cr_assert (errnum == ESTALE && strstr (error, "1048576") && strstr (error, "524288"), "%s",
             error);
  text_free (error);
  channel_close (ch);
  endpoint_close (ep);
}

/* HOLE without ZERO is data. */
ENDPOINT_TEST (holes_are_not_zero)
{
  struct answer a = { 0 };

  if (!have_python ())
    return;
  struct endpoint *ep = must_open (FAKE "--holes-are-not-zero ]", &rw);
  struct channel *ch = must_channel (ep);
  cr_assert (start (ch, STATUS, NULL, 1 << 20, 0, &a) == 0 && drive (ch, &a, 1));
  cr_assert (a.error == 0 && a.nr_extents == 1 && !a.extents[0].zero);
  channel_close (ch);
  endpoint_close (ep);
}

/* An error reply is the request's error; the channel lives on. */
ENDPOINT_TEST (error_replies)
{
  unsigned char *buf = buffer (4096);

  if (!have_python ())
    return;
  memset (buf, 7, 4096);
  struct endpoint *ep
      = must_open (FAKE "--fault write:2=error:EIO --fault write:3=error:ENOSPC"
                        " --fault write:4=error:EPERM --fault read:2=error:EIO"
                        " --fault flush:2=error:EIO --fault status:1=error:EINVAL ]",
                   &rw);
  struct channel *ch = must_channel (ep);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == 0);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == EIO);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == ENOSPC);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == EPERM);
  cr_assert (request (ch, READ, buf, 4096, 0) == EIO);
  cr_assert (request (ch, FLUSH, NULL, 0, 0) == EIO);
  cr_assert (request (ch, STATUS, NULL, 4096, 0) == EINVAL);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == 0);
  cr_assert (request (ch, FLUSH, NULL, 0, 0) == 0);
  cr_assert (channel_error (ch) == NULL);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* With the fault, of 8 writes and a flush some fail; the channel dies, all are completed exactly
 * once, it says TEXT and takes no more; a new channel works.  Returns how many completions had ERR.
 */
static unsigned
kills (const char *fault, int err, const char *text)
{
  struct endpoint_options opts = { .writable = true, .request_timeout_ms = 700 };
  char name[500];
  unsigned char *buf = buffer (8 * 65536);
  struct answer a = { 0 };
  struct pollfd fds[CHANNEL_MAX_FDS];
  int64_t begin = clock_ms ();
  unsigned started = 0, nr = 0;
  int timeout = -1;

  snprintf (name, sizeof name, FAKE "--fault %s ]", fault);
  struct endpoint *ep = must_open (name, &opts);
  struct channel *ch = must_channel (ep);
  fill (buf, 8 * 65536, 0);
  /* The connection may break while they are started. */
  while (started < 8 && start (ch, WRITE, buf + started * 65536, 65536, started * 65536, &a) == 0)
    started++;
  cr_assert (started == 8 || (started >= 5 && errno == ESHUTDOWN));
  if (drive (ch, &a, started) && start (ch, FLUSH, NULL, 0, 0, &a) == 0)
    started++;
  cr_assert (!drive (ch, &a, started + 1), "%s: the channel lives", fault);
  cr_assert (a.nr == started, "%s: %u completions", fault, a.nr);
  for (unsigned i = 0; i < a.nr; i++) {
    cr_assert (a.errors[i] == 0 || a.errors[i] == ESHUTDOWN || a.errors[i] == err, "%s: errno %d",
               fault, a.errors[i]);
    nr += a.errors[i] == err;
  }
  cr_assert (clock_ms () - begin < 3000, "%s: it took %d ms", fault, (int)(clock_ms () - begin));
  cr_assert (channel_error (ch) && strstr (channel_error (ch), text), "%s: %s", fault,
             channel_error (ch));
  cr_assert (channel_room (ch) == 0);
  cr_assert (channel_pollfds (ch, fds, CHANNEL_MAX_FDS, &timeout) == 0 && timeout == 0);
  cr_assert (channel_dispatch (ch, fds, 0) == -1);
  cr_assert (request (ch, READ, buf, 65536, 0) == ESHUTDOWN);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
  return nr;
}

ENDPOINT_TEST (broken_connections)
{
  if (!have_python ())
    return;
  cr_assert (kills ("write:5=close", ESHUTDOWN, "the server closed the connection") >= 1);
  cr_assert (kills ("write:5=close-mid", ESHUTDOWN, "the server closed the connection") >= 1);
  /* libnbd 1.14 breaks the connection at once; 1.22 ignores the reply, and time ends it. */
  kills ("write:5=wrong-cookie", ETIMEDOUT, "");
  cr_assert (kills ("write:5=hang", ETIMEDOUT, "no reply to a write of 65536 bytes at 262144")
             == 1);
  cr_assert (kills ("write:5=hang-after", ETIMEDOUT, "bytes at 327680 within 0.7 s") == 1);
  cr_assert (kills ("flush:2=close", ESHUTDOWN, "the server closed the connection") == 1);
  cr_assert (kills ("flush:2=hang", ETIMEDOUT, "no reply to a flush") == 1);
}

/* Whoever opens an export to write there is told whether its beginning could be read.  That it
 * could not is no reason to refuse it yet. */
ENDPOINT_TEST (first_read)
{
  if (!have_python ())
    return;
  struct endpoint *ep = must_open (FAKE "--fault read:2=error:EIO ]", &rw);
  cr_assert (endpoint_info (ep)->was_read);
  endpoint_close (ep);
  ep = must_open (FAKE "--fault read:1=error:EIO ]", &rw);
  cr_assert (!endpoint_info (ep)->was_read);
  endpoint_close (ep);
  const struct endpoint_options hasty = { .writable = true, .request_timeout_ms = 200 };
  refused (FAKE "--fault read:1=hang ]", &hasty, ETIMEDOUT, "no reply to a read");
}

/* A server that is slow, but answers now and then, is not taken for a dead one. */
ENDPOINT_TEST (slow_but_alive)
{
  struct endpoint_options opts = { .writable = true, .request_timeout_ms = 600 };
  unsigned char *buf = buffer (65536);
  struct answer a = { 0 };

  if (!have_python ())
    return;
  memset (buf, 7, 65536);
  struct endpoint *ep = must_open (FAKE "--delay 0.15 ]", &opts);
  struct channel *ch = must_channel (ep);
  for (unsigned i = 0; i < 10; i++)
    cr_assert (start (ch, WRITE, buf, 65536, i * 65536, &a) == 0);
  cr_assert (drive (ch, &a, 10), "%s", channel_error (ch));
  for (unsigned i = 0; i < 10; i++)
    cr_assert (a.errors[i] == 0);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* A server that writes its caches out may take longer for a flush than for anything else. */
ENDPOINT_TEST (slow_flush)
{
  struct endpoint_options opts = { .writable = true, .request_timeout_ms = 600 };
  struct answer a = { 0 };

  if (!have_python ())
    return;
  struct endpoint *ep = must_open (FAKE "--fault flush:2=delay:1.1 ]", &opts);
  struct channel *ch = must_channel (ep);
  cr_assert (start (ch, FLUSH, NULL, 0, 0, &a) == 0);
  cr_assert (drive (ch, &a, 1), "%s", channel_error (ch));
  cr_assert (a.error == 0);
  channel_close (ch);
  endpoint_close (ep);
}

/* Closing ends, though the server says nothing more, and completes what is in flight. */
ENDPOINT_TEST (close_while_silent)
{
  unsigned char *buf = buffer (65536);
  struct answer a = { 0 };

  if (!have_python ())
    return;
  memset (buf, 7, 65536);
  struct endpoint *ep = must_open (FAKE "--fault write:1=hang ]", &rw);
  struct channel *ch = must_channel (ep);
  cr_assert (start (ch, WRITE, buf, 65536, 0, &a) == 0);
  int64_t begin = clock_ms ();
  channel_close (ch);
  cr_assert (a.nr == 1 && a.error == ESHUTDOWN);
  endpoint_close (ep);
  cr_assert (clock_ms () - begin < 3000);
  free (buf);
}
