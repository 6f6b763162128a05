/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A long line between two unix sockets, for bench/run line and for tests.
 *
 *   relay --listen SOCKET --connect SOCKET [--delay MS] [--rate BYTES/S] [--buffer BYTES]
 *   relay --ceiling SECONDS [--delay MS] [--rate BYTES/S] [--buffer BYTES]
 *
 * What comes in at one side leaves at the other one --delay milliseconds later, in each direction,
 * so the round trip is twice that.  All connections together get --rate bytes a second in each
 * direction (0: no limit).  Each connection has a queue of --buffer bytes (64 MiB) in front of the
 * line, for each direction: a sender that finds its own full waits.  "ready" is printed when it
 * listens.
 *
 * --ceiling proves that the relay is no bottleneck: it sends as much as it can through a line of
 * its own and prints the bytes a second that arrive.
 *
 * Each direction of a connection has a thread and a ring of memory of its own.  A byte is copied
 * twice, by the two system calls.  Notes in a second ring say when which part of the first one is
 * due.  The only thing that threads share is the clock of the line, which tells when it is free
 * again.
 */

#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

#define READ_BYTES (256u * 1024)
#define NOTES 65536u
#define SOCKET_BUFFER (1 << 20)

static uint64_t delay_ns, rate, buffer_bytes = UINT64_C (64) << 20;

/* Up to where (in the ring's count of bytes) the line's other end has it, and when. */
struct note {
  uint64_t end, due_ns;
};

struct line {
  pthread_mutex_t lock;
  uint64_t free_ns; /* when the last byte that was taken will have left the sender */
};
static struct line lines[2]
    = { { .lock = PTHREAD_MUTEX_INITIALIZER }, { .lock = PTHREAD_MUTEX_INITIALIZER } };

struct direction {
  int from, to;
  struct line *line;
  uint8_t *ring;
  struct note *notes;
  uint64_t in, out; /* bytes ever read and written */
  uint64_t notes_in, notes_out;
  bool ended; /* nothing more comes in */
};

struct connection {
  struct direction d[2];
  _Atomic int running;
};

/* When N bytes that were handed to the line at NOW are at its other end. */
static uint64_t
due_ns (struct line *l, uint64_t n, uint64_t now)
{
  if (rate == 0)
    return now + delay_ns;
  pthread_mutex_lock (&l->lock);
  if (l->free_ns < now)
    l->free_ns = now;
  l->free_ns += (uint64_t)((double)n / (double)rate * (double)NS_PER_S);
  uint64_t due = l->free_ns + delay_ns;
  pthread_mutex_unlock (&l->lock);
  return due;
}

/* -1: the connection is broken. */
static int
take_in (struct direction *d)
{
  uint64_t at = d->in % buffer_bytes, room = buffer_bytes - (d->in - d->out);
  if (room > buffer_bytes - at)
    room = buffer_bytes - at;
  ssize_t n = recv (d->from, d->ring + at, room < READ_BYTES ? room : READ_BYTES, MSG_DONTWAIT);
  if (n == -1)
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
  if (n == 0) {
    d->ended = true;
    return 0;
  }
  d->in += (uint64_t)n;
  d->notes[d->notes_in++ % NOTES]
      = (struct note){ d->in, due_ns (d->line, (uint64_t)n, clock_ns ()) };
  return 0;
}

/* Write what is due.  Returns when more will be (UINT64_MAX: not known), 0 if the other side does
 * not take it now, or 1 if the connection is broken. */
static uint64_t
give_out (struct direction *d)
{
  while (d->notes_out < d->notes_in) {
    const struct note *note = &d->notes[d->notes_out % NOTES];
    if (note->due_ns > clock_ns ())
      return note->due_ns;
    uint64_t end = note->end;
    /* Whatever else is due goes along. */
    for (uint64_t i = d->notes_out + 1, now = clock_ns (); i < d->notes_in; i++) {
      if (d->notes[i % NOTES].due_ns > now)
        break;
      end = d->notes[i % NOTES].end;
    }
    uint64_t at = d->out % buffer_bytes, n = end - d->out;
    if (n > buffer_bytes - at)
      n = buffer_bytes - at;
    ssize_t sent = send (d->to, d->ring + at, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == -1)
      return errno == EAGAIN || errno == EINTR ? 0 : 1;
    d->out += (uint64_t)sent;
    while (d->notes_out < d->notes_in && d->notes[d->notes_out % NOTES].end <= d->out)
      d->notes_out++;
  }
  return UINT64_MAX;
}

static void
run (struct direction *d)
{
  for (;;) {
    uint64_t next = give_out (d);
    bool full = d->in - d->out >= buffer_bytes || d->notes_in - d->notes_out >= NOTES;
    if (next == 1 || (d->ended && d->out == d->in))
      return;
    struct pollfd fds[2] = {
      { .fd = d->ended || full ? -1 : d->from, .events = POLLIN },
      { .fd = next == 0 ? d->to : -1, .events = POLLOUT },
    };
    uint64_t now = clock_ns ();
    const struct timespec wait = clock_timespec (next > now ? next - now : 0);
    if (ppoll (fds, 2, next == 0 || next == UINT64_MAX ? NULL : &wait, NULL) == -1
        && errno != EINTR)
      return;
    if (fds[0].revents && take_in (d) == -1)
      return;
  }
}

static void *
direction_thread (void *opaque)
{
  struct connection *c = ((struct connection **)opaque)[0];
  struct direction *d = ((struct direction **)opaque)[1];

  free (opaque);
  run (d);
  /* The other direction goes on until it is done as well. */
  shutdown (d->to, SHUT_WR);
  shutdown (d->from, SHUT_RD);
  munmap (d->ring, buffer_bytes);
  free (d->notes);
  if (atomic_fetch_sub (&c->running, 1) == 1) {
    close (c->d[0].from);
    close (c->d[0].to);
    free (c);
  }
  return NULL;
}

static void
die (const char *what)
{
  fprintf (stderr, "relay: %s: %s\n", what, strerror (errno));
  exit (1);
}

static void
start (int a, int b)
{
  struct connection *c = calloc (1, sizeof *c);
  int size = SOCKET_BUFFER;

  if (c == NULL)
    die ("memory");
  atomic_init (&c->running, 2);
  for (unsigned i = 0; i < 2; i++) {
    struct direction *d = &c->d[i];
    pthread_t thread;
    void **both = calloc (2, sizeof *both);
    *d = (struct direction){ .from = i ? b : a, .to = i ? a : b, .line = &lines[i] };
    setsockopt (d->to, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    /* Memory is used only as far as the line is filled. */
    d->ring = mmap (NULL, buffer_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    d->notes = calloc (NOTES, sizeof *d->notes);
    if (d->ring == MAP_FAILED || d->notes == NULL || both == NULL)
      die ("memory");
    both[0] = c;
    both[1] = d;
    if (pthread_create (&thread, NULL, direction_thread, both) != 0)
      die ("thread");
    pthread_detach (thread);
  }
}

static int
unix_socket (const char *path, bool listens)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (strlen (path) >= sizeof sa.sun_path) {
    errno = ENAMETOOLONG;
    die (path);
  }
  strcpy (sa.sun_path, path);
  if (fd == -1)
    die ("socket");
  if (listens) {
    unlink (path);
    if (bind (fd, (struct sockaddr *)&sa, sizeof sa) == -1 || listen (fd, 64) == -1)
      die (path);
  } else if (connect (fd, (struct sockaddr *)&sa, sizeof sa) == -1) {
    close (fd);
    return -1;
  }
  return fd;
}

static void
serve (const char *listen_at, const char *connect_to)
{
  int fd = unix_socket (listen_at, true);

  printf ("ready\n");
  fflush (stdout);
  for (;;) {
    int client = accept4 (fd, NULL, NULL, SOCK_CLOEXEC);
    if (client == -1)
      continue;
    int server = unix_socket (connect_to, false);
    if (server == -1)
      close (client); /* as a line whose other end is dead */
    else
      start (client, server);
  }
}

/* ---- the ceiling ---- */

static void *
send_bulk (void *opaque)
{
  int fd = *(int *)opaque;
  char *data = calloc (1, READ_BYTES);

  while (data != NULL && send (fd, data, READ_BYTES, MSG_NOSIGNAL) > 0)
    ;
  free (data);
  return NULL;
}

static void
ceiling (double seconds)
{
  int near[2], far[2], size = SOCKET_BUFFER;
  pthread_t thread;
  char *data = malloc (READ_BYTES);
  uint64_t bytes = 0, begin = 0, now = 0;

  if (data == NULL || socketpair (AF_UNIX, SOCK_STREAM, 0, near) == -1
      || socketpair (AF_UNIX, SOCK_STREAM, 0, far) == -1)
    die ("socketpair");
  setsockopt (near[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  start (near[1], far[0]);
  if (pthread_create (&thread, NULL, send_bulk, &near[0]) != 0)
    die ("thread");
  while (begin == 0 || now - begin < (uint64_t)(seconds * (double)NS_PER_S)) {
    ssize_t n = recv (far[1], data, READ_BYTES, 0);
    now = clock_ns ();
    if (n <= 0)
      die ("recv");
    if (begin == 0)
      begin = now;
    else
      bytes += (uint64_t)n;
  }
  printf ("%.0f\n", (double)bytes * (double)NS_PER_S / (double)(now - begin));
}

int
main (int argc, char *argv[])
{
  static const struct option options[] = { { "listen", required_argument, NULL, 'l' },
                                           { "connect", required_argument, NULL, 'c' },
                                           { "delay", required_argument, NULL, 'd' },
                                           { "rate", required_argument, NULL, 'r' },
                                           { "buffer", required_argument, NULL, 'b' },
                                           { "ceiling", required_argument, NULL, 's' },
                                           { NULL, 0, NULL, 0 } };
  const char *listen_at = NULL, *connect_to = NULL;
  double seconds = 0;
  int opt;

  while ((opt = getopt_long (argc, argv, "", options, NULL)) != -1) {
    if (opt == 'l')
      listen_at = optarg;
    else if (opt == 'c')
      connect_to = optarg;
    else if (opt == 'd')
      delay_ns = (uint64_t)(strtod (optarg, NULL) * (double)NS_PER_MS);
    else if (opt == 'r')
      rate = strtoull (optarg, NULL, 10);
    else if (opt == 'b')
      buffer_bytes = strtoull (optarg, NULL, 10);
    else if (opt == 's')
      seconds = strtod (optarg, NULL);
    else
      return 2;
  }
  if (buffer_bytes < READ_BYTES)
    buffer_bytes = READ_BYTES;
  if (seconds > 0)
    ceiling (seconds);
  else if (listen_at == NULL || connect_to == NULL) {
    fprintf (stderr, "relay: --listen and --connect, or --ceiling, are needed\n");
    return 2;
  } else
    serve (listen_at, connect_to);
  return 0;
}
