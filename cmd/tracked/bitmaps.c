/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See bitmaps.h.
 */

#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/adopt/monitor.h"
#include "cmd/tracked/bitmaps.h"
#include "mirror/endpoint/frozen-bitmap.h"

#define NR_BITMAPS 2
#define PREFIX "nbdmirror-"
#define READ_TIMEOUT_MS 20000
#define REMOVE_TRIES 200
#define REMOVE_PAUSE_MS 10

/* QEMU's own names of nodes begin with '#', which no export's ID may hold. */
static void
plain_name (const char *node, char plain[BITMAPS_NODE_BYTES])
{
  snprintf (plain, BITMAPS_NODE_BYTES, "%s", node);
  for (char *c = plain; *c != '\0'; c++)
    if (!isalnum ((unsigned char)*c) && strchr ("-._", *c) == NULL)
      *c = '_';
}

void
bitmaps_init (struct bitmaps *b, const char *qmp, const char *node)
{
  char run[64];

  *b = (struct bitmaps){ .node = node, .socket = text_printf ("%s.nbdmirror", qmp) };
  snprintf (run, sizeof run, "%llx-%lx", (unsigned long long)clock_date_us (), (long)getpid ());
  plain_name (node, b->end);
  snprintf (b->data, sizeof b->data, PREFIX "data-%s-%s", run, b->end);
  snprintf (b->changes, sizeof b->changes, PREFIX "changes-%s-%s", run, b->end);
  for (unsigned i = 0; i < NR_BITMAPS; i++)
    snprintf (b->bitmap[i], sizeof b->bitmap[i], PREFIX "bitmap%u-%s-%s", i, run, b->end);
}

bool
bitmaps_is_ours (const char *id)
{
  return strncmp (id, PREFIX, sizeof PREFIX - 1) == 0;
}

/* ---- QEMU's NBD server -------------------------------------------------------------------- */

/* Does VM itself listen at the socket that is ours? */
static bool
server_is_ours (const struct bitmaps *b, const struct machine *vm)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  struct ucred cred;
  socklen_t len = sizeof cred;

  if (strlen (b->socket) >= sizeof sa.sun_path)
    return false;
  strcpy (sa.sun_path, b->socket);
  CLEANUP_FD int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (sock == -1 || connect (sock, (struct sockaddr *)&sa, sizeof sa) == -1
      || getsockopt (sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) == -1)
    return false;
  pid_t pid = monitor_process (vm);
  return pid == 0 || pid == cred.pid;
}

int
bitmaps_start_server (const struct bitmaps *b, struct machine *vm, bool *refused, char **error)
{
  struct sockaddr_un sa;
  bool answered;

  *refused = false;
  if (strlen (b->socket) >= sizeof sa.sun_path) {
    *refused = true;
    return text_error (error, "%s is too long for the path of a socket", b->socket);
  }
  if (vm->qmp == NULL && machine_connect (vm, error) == -1)
    return -1;
  if (server_is_ours (b, vm))
    return 0;
  json_t *args
      = json_pack ("{s:{s:s, s:{s:s}}}", "addr", "type", "unix", "data", "path", b->socket);
  if (machine_call (vm, "nbd-server-start", args, NULL, &answered, error) == 0)
    return 0;
  *refused = answered;
  return -1;
}

static int
add_export (const struct bitmaps *b, struct machine *vm, const char *id, const char *bitmap,
            char **error)
{
  json_t *args = json_pack ("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id", id, "node-name",
                            b->node, "name", id, "writable", 0);
  if (bitmap != NULL)
    json_object_set_new (args, "bitmaps", json_pack ("[s]", bitmap));
  else /* which layer holds it, for --sync top */
    json_object_set_new (args, "allocation-depth", json_true ());
  return machine_call (vm, "block-export-add", args, NULL, NULL, error);
}

int
bitmaps_export (struct bitmaps *b, struct machine *vm, bool *refused, char **error)
{
  if (bitmaps_start_server (b, vm, refused, error) == -1)
    return -1;
  return add_export (b, vm, b->data, NULL, error);
}

/* ---- removing ------------------------------------------------------------------------------- */

/* *FOUND: is there an export ID (NULL: any of an NBD server)? */
static int
find_export (struct machine *vm, const char *id, bool *found, char **error)
{
  json_t *list = NULL, *o;
  size_t i;

  *found = false;
  if (machine_call (vm, "query-block-exports", NULL, &list, NULL, error) == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    const char *its = json_string_value (json_object_get (o, id != NULL ? "id" : "type"));
    *found = *found || (its != NULL && strcmp (its, id != NULL ? id : "nbd") == 0);
  }
  json_decref (list);
  return 0;
}

/* QEMU removes an export some time after it was asked to. */
static int
remove_export (struct machine *vm, const char *id, char **error)
{
  for (int tries = 0; tries < REMOVE_TRIES; tries++) {
    bool found;
    if (find_export (vm, id, &found, error) == -1)
      return -1;
    if (!found)
      return 0;
    char *refusal = NULL; /* asked before: it is shutting down */
    machine_call (vm, "block-export-del", json_pack ("{s:s, s:s}", "id", id, "mode", "hard"), NULL,
                  NULL, &refusal);
    text_free (refusal);
    if (tries > 0)
      clock_sleep_ms (REMOVE_PAUSE_MS);
  }
  return text_error (error, "QEMU does not remove its export %s", id);
}

static int
remove_bitmap (struct machine *vm, const char *node, const char *name, char **error)
{
  return machine_call (vm, "block-dirty-bitmap-remove",
                       json_pack ("{s:s, s:s}", "node", node, "name", name), NULL, NULL, error);
}

/* Does NAME, one of a job's, end with the node's name?  Before that are what it is for, a date and
 * a process. */
static bool
is_of_node (const struct bitmaps *b, const char *name)
{
  const char *end = name + sizeof PREFIX - 1;

  for (int i = 0; i < 3 && end != NULL; i++) {
    end = strchr (end, '-');
    end = end != NULL ? end + 1 : NULL;
  }
  return end != NULL && strcmp (end, b->end) == 0;
}

/* Is NAME this job's, or one of an EARLIER one? */
static bool
is_meant (const struct bitmaps *b, const char *name, bool earlier)
{
  if (earlier)
    return bitmaps_is_ours (name) && is_of_node (b, name);
  return strcmp (name, b->data) == 0 || strcmp (name, b->changes) == 0
         || strcmp (name, b->bitmap[0]) == 0 || strcmp (name, b->bitmap[1]) == 0;
}

/* An export moves to the overlay with the guest, when somebody makes one, so its node is not looked
 * at. */
static int
remove_exports (const struct bitmaps *b, struct machine *vm, bool earlier, char **error)
{
  json_t *list = NULL, *o;
  int r = 0;
  size_t i;

  if (machine_call (vm, "query-block-exports", NULL, &list, NULL, error) == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    const char *id = json_string_value (json_object_get (o, "id"));
    if (r == 0 && id != NULL && is_meant (b, id, earlier))
      r = remove_export (vm, id, error);
  }
  json_decref (list);
  return r;
}

/* Call SEE for each bitmap of each node, until it returns -1. */
static int
each_bitmap (struct machine *vm,
             int (*see) (void *opaque, const char *node, const char *name, const json_t *bitmap,
                         char **error),
             void *opaque, char **error)
{
  json_t *list = NULL, *o, *bitmap;
  int r = 0;
  size_t i, k;

  if (machine_call (vm, "query-named-block-nodes", json_pack ("{s:b}", "flat", 1), &list, NULL,
                    error)
      == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    const char *node = json_string_value (json_object_get (o, "node-name"));
    json_array_foreach (json_object_get (o, "dirty-bitmaps"), k, bitmap)
    {
      const char *name = json_string_value (json_object_get (bitmap, "name"));
      if (r == 0 && node != NULL && name != NULL)
        r = see (opaque, node, name, bitmap, error);
    }
  }
  json_decref (list);
  return r;
}

struct removal {
  const struct bitmaps *of;
  struct machine *vm;
  bool earlier;
};

static int
remove_if_meant (void *opaque, const char *node, const char *name, const json_t *bitmap,
                 char **error)
{
  const struct removal *removal = opaque;

  (void)bitmap;
  return is_meant (removal->of, name, removal->earlier)
             ? remove_bitmap (removal->vm, node, name, error)
             : 0;
}

static int
remove_bitmaps (const struct bitmaps *b, struct machine *vm, bool earlier, char **error)
{
  struct removal removal = { .of = b, .vm = vm, .earlier = earlier };

  return each_bitmap (vm, remove_if_meant, &removal, error);
}

int
bitmaps_remove (const struct bitmaps *b, struct machine *vm, bool earlier, char **error)
{
  bool found;

  if (remove_exports (b, vm, earlier, error) == -1 || remove_bitmaps (b, vm, earlier, error) == -1)
    return -1;
  if (!server_is_ours (b, vm))
    return 0;
  if (find_export (vm, NULL, &found, error) == -1)
    return -1;
  return found ? 0 : machine_call (vm, "nbd-server-stop", NULL, NULL, NULL, error);
}

/* ---- the bitmaps ---------------------------------------------------------------------------- */

static json_t *
bitmap_to_add (const struct bitmaps *b, const char *name)
{
  return json_pack ("{s:s, s:s, s:I, s:b}", "node", b->node, "name", name, "granularity",
                    (json_int_t)b->granularity, "persistent", 0);
}

int
bitmaps_start (struct bitmaps *b, struct machine *vm, uint32_t granularity, char **error)
{
  b->granularity = granularity;
  b->current = 0;
  return machine_call (vm, "block-dirty-bitmap-add", bitmap_to_add (b, b->bitmap[0]), NULL, NULL,
                       error);
}

struct count {
  const char *name;
  bool found;
  uint64_t bytes;
};

static int
take_count (void *opaque, const char *node, const char *name, const json_t *bitmap, char **error)
{
  struct count *count = opaque;

  (void)node;
  (void)error;
  if (strcmp (name, count->name) == 0) {
    count->found = true;
    count->bytes = (uint64_t)json_integer_value (json_object_get (bitmap, "count"));
  }
  return 0;
}

int
bitmaps_count (const struct bitmaps *b, struct machine *vm, uint64_t *changed, char **error)
{
  struct count count = { .name = b->bitmap[b->current] };

  if (each_bitmap (vm, take_count, &count, error) == -1)
    return -1;
  if (!count.found)
    return text_error (error, "QEMU has lost the bitmap %s", count.name);
  *changed = count.bytes;
  return 0;
}

int
bitmaps_turn (struct bitmaps *b, struct machine *vm, uint64_t size,
              void (*mark) (void *opaque, uint64_t offset, uint64_t length), void *opaque,
              char **error)
{
  const char *old = b->bitmap[b->current], *new = b->bitmap[!b->current];
  json_t *add
      = json_pack ("{s:s, s:o}", "type", "block-dirty-bitmap-add", "data", bitmap_to_add (b, new));
  json_t *freeze = json_pack ("{s:s, s:{s:s, s:s}}", "type", "block-dirty-bitmap-disable", "data",
                              "node", b->node, "name", old);

  if (machine_call (vm, "transaction", json_pack ("{s:[o, o]}", "actions", add, freeze), NULL, NULL,
                    error)
      == -1)
    return -1;
  b->current = !b->current;
  if (add_export (b, vm, b->changes, old, error) == -1
      || frozen_bitmap_read (b->socket, b->changes, old, size, READ_TIMEOUT_MS, mark, opaque, error)
             == -1
      || remove_export (vm, b->changes, error) == -1)
    return -1;
  return remove_bitmap (vm, b->node, old, error);
}
