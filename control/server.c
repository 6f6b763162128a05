/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control server: accept, and one bounded turn for every peer in each poll.
 *
 * The turns: peers are read in order, each time beginning one further, until the time for reading
 * is used up.  Each runs a bounded number of commands.  What is left stays in the kernel's buffers,
 * where the next poll() finds it.  So one call takes at most about limits.turn_ms and one command,
 * whoever floods.  Writing, and the time limits of all peers, are cheap and are done in every call.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/peer.h"
#include "control/wire.h"

#define ACCEPTS_PER_POLL 16
#define ACCEPT_PAUSE_MS 200 /* when the process is out of descriptors */

static const struct control_limits default_limits = {
  .max_peers = CONTROL_MAX_PEERS,
  .reserved = CONTROL_RESERVED,
  .line_ms = CONTROL_LINE_SECONDS * 1000,
  .idle_ms = CONTROL_IDLE_SECONDS * 1000,
  .output_ms = 5000,
  .linger_ms = 1000,
  .turn_ms = 50,
  .max_output = CONTROL_MAX_OUTPUT,
};

/* The socket is unlinked later, when the process may have another working directory.  NULL if
 * memory runs out: no other path will do. */
static char *
absolute (const char *path)
{
  char cwd[PATH_MAX], *text;

  if (path[0] == '/' || getcwd (cwd, sizeof cwd) == NULL)
    return strdup (path);
  return asprintf (&text, "%s/%s", cwd, path) == -1 ? NULL : text;
}

struct control_server *
control_server_new (const char *path, const char *package, const struct control_server_ops *ops,
                    void *opaque, char **error)
{
  struct control_server *s = calloc (1, sizeof *s);

  *error = NULL;
  if (s == NULL) {
    text_error (error, "%s: out of memory", path);
    return NULL;
  }
  s->limits = default_limits;
  s->ops = ops;
  s->opaque = opaque;
  s->sock = -1;
  s->path = absolute (path);
  s->package = text_copy (package);
  if (s->path == NULL)
    text_error (error, "%s: out of memory", path);
  else
    s->sock = control_listen (path, &s->inode, error);
  if (s->sock == -1) {
    free (s->path);
    text_free (s->package);
    free (s);
    return NULL;
  }
  return s;
}

/* ---- accepting ---- */

static unsigned
common_peers (const struct control_server *s)
{
  unsigned n = 0;

  for (unsigned i = 0; i < s->nr_peers; i++) {
    if (s->peers[i]->uid != 0 && !s->peers[i]->worker)
      n++;
  }
  return n;
}

static void
remove_peer (struct control_server *s, unsigned i)
{
  peer_free (s->peers[i]);
  s->nr_peers--;
  memmove (&s->peers[i], &s->peers[i + 1], (s->nr_peers - i) * sizeof s->peers[0]);
  if (s->turn > i)
    s->turn--;
}

/* The peer that has been silent for longest, of those whose place would help a peer of this uid.
 * NULL if none may go. */
static struct control_peer *
longest_idle (const struct control_server *s, uid_t uid)
{
  bool all_taken = s->nr_peers >= s->limits.max_peers;
  struct control_peer *found = NULL;
  int64_t now = clock_ms ();

  for (unsigned i = 0; i < s->nr_peers; i++) {
    struct control_peer *p = s->peers[i];

    if ((all_taken || uid == 0 || p->uid != 0) && peer_is_idle (p, now)
        && (found == NULL || p->last_input < found->last_input)
        && (s->ops->needed == NULL || !s->ops->needed (s->opaque, p)))
      found = p;
  }
  return found;
}

/* Tell P why, as far as its socket takes that at once, and end it. */
static void
take_place (struct control_server *s, struct control_peer *p)
{
  unsigned i = 0;

  peer_queue_error (p, NULL, "GenericError",
                    "this connection was idle, and another client needed its place");
  peer_flush (p);
  p->state = PEER_GONE; /* before the callback: nothing can be queued any more */
  s->ops->closed (s->opaque, p);
  while (s->peers[i] != p)
    i++;
  remove_peer (s, i);
}

/* Is there a place for a peer of this uid?  One that only lingers gives way, and then an idle one.
 */
static bool
find_place (struct control_server *s, uid_t uid)
{
  for (;;) {
    unsigned i;

    if (s->nr_peers < s->limits.max_peers
        && (uid == 0 || common_peers (s) < s->limits.max_peers - s->limits.reserved))
      return true;
    for (i = 0; i < s->nr_peers && s->peers[i]->state != PEER_LINGERING; i++)
      ;
    struct control_peer *idle = i == s->nr_peers ? longest_idle (s, uid) : NULL;
    if (i < s->nr_peers)
      remove_peer (s, i);
    else if (idle != NULL)
      take_place (s, idle);
    else
      return false;
  }
}

static void
refuse (int sock, const char *reason)
{
  json_t *m = json_pack ("{s:{s:s, s:s}}", "error", "class", "GenericError", "desc", reason);
  size_t len;
  char *line = m != NULL ? frame_encode (m, &len) : NULL;

  if (line != NULL)
    wire_send (sock, line, len, -1);
  free (line);
  json_decref (m);
  close (sock);
}

static void
admit (struct control_server *s, int sock)
{
  struct ucred cred = { .uid = (uid_t)-1 };
  socklen_t len = sizeof cred;

  if (getsockopt (sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) == -1) {
    close (sock);
    return;
  }
  if (cred.uid != 0 && cred.uid != geteuid ()) {
    refuse (sock, "only root and the user that runs the server may connect");
    return;
  }
  if (!find_place (s, cred.uid)) {
    refuse (sock, "too many clients are connected to this control socket");
    return;
  }
  struct control_peer *p = peer_new (s, sock, cred.pid, cred.uid);
  if (p == NULL) {
    close (sock);
    return;
  }
  s->peers[s->nr_peers++] = p;
}

static void
accept_peers (struct control_server *s)
{
  for (int i = 0; i < ACCEPTS_PER_POLL; i++) {
    int sock = accept4 (s->sock, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (sock == -1) {
      if (errno == EINTR || errno == ECONNABORTED)
        continue;
      /* Out of descriptors or memory: the client stays in the queue, and poll() would report it
       * for ever. */
      if (errno != EAGAIN && errno != EWOULDBLOCK)
        s->accept_after = clock_ms () + ACCEPT_PAUSE_MS;
      return;
    }
    admit (s, sock);
  }
}

/* ---- one poll ---- */

static struct pollfd *
need_pfds (struct control_server *s, size_t n)
{
  if (n <= s->pfds_cap)
    return s->pfds;
  struct pollfd *bigger = realloc (s->pfds, n * sizeof *bigger);
  if (bigger == NULL)
    return NULL;
  s->pfds = bigger;
  s->pfds_cap = n;
  return bigger;
}

static int
shorten (int timeout_ms, int64_t deadline, int64_t now)
{
  int64_t left = deadline > now ? deadline - now : 0;

  if (deadline == INT64_MAX || (timeout_ms >= 0 && left >= timeout_ms))
    return timeout_ms;
  return left > INT_MAX ? INT_MAX : (int)left;
}

/* Wait.  Then pfds[0] is the listening socket, pfds[1 + i] is peer i. */
static int
wait_for_work (struct control_server *s, int timeout_ms, struct pollfd *extra, unsigned nr_extra)
{
  size_t n = 1 + (size_t)s->nr_peers + nr_extra;
  struct pollfd *pfds = need_pfds (s, n);
  int64_t now = clock_ms ();
  bool accepting = now >= s->accept_after;

  if (pfds == NULL) {
    errno = ENOMEM;
    return -1;
  }
  pfds[0] = (struct pollfd){ .fd = accepting ? s->sock : -1, .events = POLLIN };
  if (!accepting)
    timeout_ms = shorten (timeout_ms, s->accept_after, now);
  for (unsigned i = 0; i < s->nr_peers; i++) {
    struct control_peer *p = s->peers[i];

    pfds[1 + i] = (struct pollfd){ .fd = p->sock, .events = peer_events (p) };
    timeout_ms = shorten (timeout_ms, peer_deadline (p), now);
    if (p->state == PEER_GONE || (p->state == PEER_CLOSING && p->out == NULL))
      timeout_ms = 0; /* marked between two polls */
  }
  if (nr_extra > 0)
    memcpy (&pfds[1 + s->nr_peers], extra, nr_extra * sizeof *extra);
  int r = poll (pfds, n, timeout_ms);
  int err = errno;
  for (size_t i = 0; r == -1 && i < n; i++)
    pfds[i].revents = 0;
  for (unsigned i = 0; i < nr_extra; i++)
    extra[i].revents = pfds[1 + s->nr_peers + i].revents;
  if (r == -1 && err != EINTR) {
    errno = err;
    return -1;
  }
  return 0;
}

static void
serve_peers (struct control_server *s)
{
  uint64_t until = clock_ms () + s->limits.turn_ms;
  unsigned n = s->nr_peers, first = n > 0 ? s->turn % n : 0;

  s->turn = first + 1;
  for (unsigned k = 0; k < n; k++) {
    unsigned i = (first + k) % n;
    short revents = s->pfds[1 + i].revents;

    if ((revents & ~POLLOUT) == 0)
      continue;
    if (clock_ms () >= until) {
      s->turn = i; /* first the next time */
      break;
    }
    peer_serve (s->peers[i], revents, until);
  }
}

/* Free peers that are gone, let go of those that are closing and have got everything.  The callback
 * may mark further ones, so look until there are none. */
static void
reap_peers (struct control_server *s)
{
  for (unsigned i = 0; i < s->nr_peers;) {
    struct control_peer *p = s->peers[i];

    if (p->state == PEER_CLOSING && p->out == NULL) {
      peer_linger (p, clock_ms ());
      s->ops->closed (s->opaque, p);
      i = 0;
    } else if (p->state == PEER_GONE) {
      if (p->linger_until == 0)
        s->ops->closed (s->opaque, p);
      remove_peer (s, i);
      i = 0;
    } else
      i++;
  }
}

int
control_server_poll (struct control_server *s, int timeout_ms, struct pollfd *extra,
                     unsigned nr_extra)
{
  if (wait_for_work (s, timeout_ms, extra, nr_extra) == -1)
    return -1;
  serve_peers (s);
  if (s->pfds[0].revents != 0)
    accept_peers (s);
  for (unsigned i = 0; i < s->nr_peers; i++)
    peer_flush (s->peers[i]);
  int64_t now = clock_ms ();
  for (unsigned i = 0; i < s->nr_peers; i++)
    peer_check (s->peers[i], now);
  reap_peers (s);
  return 0;
}

void
control_server_free (struct control_server *s)
{
  if (s == NULL)
    return;
  control_unlisten (s->path, &s->inode);
  close (s->sock);
  for (unsigned i = 0; i < s->nr_peers; i++)
    peer_flush (s->peers[i]);
  for (unsigned i = 0; i < s->nr_peers; i++) {
    if (s->peers[i]->linger_until == 0) {
      s->peers[i]->state = PEER_GONE; /* before any callback: nothing can be queued any more */
      s->ops->closed (s->opaque, s->peers[i]);
    }
  }
  while (s->nr_peers > 0)
    remove_peer (s, s->nr_peers - 1);
  free (s->pfds);
  free (s->path);
  text_free (s->package);
  free (s);
}

unsigned
control_server_peers (const struct control_server *s)
{
  unsigned n = 0;

  for (unsigned i = 0; i < s->nr_peers; i++) {
    if (s->peers[i]->linger_until == 0)
      n++;
  }
  return n;
}
