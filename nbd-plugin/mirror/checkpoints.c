/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Commands about checkpoints, but for adding one.  See checkpoints.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/state/recordings.h"
#include "nbd-plugin/mirror/checkpoints.h"
#include "nbd-plugin/mirror/filter.h"

#define LIST_MAX 64  /* checkpoints in one answer, which fits in a line */
#define COUNT_MS 200 /* how long the list may take to add up recordings */
#define LOOK_MS 200  /* the same for a look at a job's region */

/* ---- removing ---- */

void
checkpoints_remove (struct mirror *m, struct control_peer *peer, json_t *id, const char *name)
{
  CLEANUP_TEXT char *error = NULL;

  if (!m->persist.open)
    control_error (peer, id, "NoStateFile", "%s", NO_STATE_FILE);
  else if (state_checkpoint_remove (&m->persist.state, name, &error) == -1)
    control_error (peer, id, "GenericError", "%s", error);
  else
    control_reply (peer, id, NULL, -1);
}

/* ---- marking ---- */

static int
wait_on (void *opaque)
{
  (void)opaque;
  return 0; /* the state file is given up before that takes long */
}

/* In the order of a guest's write, but that nothing is written. */
void
checkpoints_mark (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t offset,
                  uint64_t length)
{
  struct state *s = &m->persist.state;
  struct gate_view gate;
  struct region_geometry geo;
  bool counted = false;

  gate_look (&m->gate, &gate);
  if (m->persist.open)
    persist_check_disk (m);
  if (!m->persist.open)
    control_error (peer, id, "NoStateFile", "%s", NO_STATE_FILE);
  else if (gate.mode != GATE_OPEN)
    control_error (peer, id, "Busy", "a hand-over is under way, or the disk was handed over");
  else if (!tracker_geometry (&m->tracker, &geo) || length == 0 || length > CHECKPOINTS_MARK_MAX
           || offset >= geo.disk_size || length > geo.disk_size - offset)
    control_error (peer, id, "GenericError", "no such range of the disk, or more than %u bytes",
                   CHECKPOINTS_MARK_MAX);
  else if (state_enter (s, offset, length, wait_on, NULL, &counted) != 0 || !counted)
    control_error (peer, id, "Inconsistent", "nothing is recorded of this disk");
  else {
    tracker_mark (&m->tracker, offset, length);
    state_leave (s, offset, length);
    control_reply (peer, id, NULL, -1);
  }
}

/* ---- looking ---- */

static uint64_t
count_blocks (const struct state *s, const uint64_t *bits)
{
  const struct region_geometry *geo = &s->layout.geo;
  uint64_t n = 0;

  for (uint64_t w = 0; w < geo->nr_words; w++)
    n += (uint64_t)__builtin_popcountll (bits[w]);
  return n < geo->nr_blocks ? n : geo->nr_blocks;
}

/* How many blocks were changed since checkpoint FROM of T, by adding its recording to BITS, which
 * has what the later ones have.  -1: not known. */
static int64_t
add_recording (struct state *s, const struct state_table *t, uint32_t from, uint64_t *bits)
{
  CLEANUP_TEXT char *error = NULL;
  uint64_t bad;

  if (state_table_fault (t, from) != -1 || !atomic_load (&s->active))
    return -1;
  if (from + 1 == t->nr)
    for (uint64_t w = 0; w < s->layout.geo.nr_words; w++)
      bits[w] = atomic_load (&s->slots[t->slot][w]);
  else if (state_read_recording (&s->layout, &t->list[from], s->io.read, s->io.opaque, bits, &bad,
                                 &error)
           == -1)
    return -1;
  return (int64_t)count_blocks (s, bits);
}

/* CHANGED[i]: blocks changed since checkpoint i of T, or -1 where that is not known, or would take
 * too long to find out: always, while a guest waits at the gate for us. */
static void
count_changes (struct mirror *m, const struct state_table *t, int64_t *changed)
{
  struct state *s = &m->persist.state;
  uint64_t begun = clock_ms ();
  struct gate_view gate;

  gate_look (&m->gate, &gate);
  uint64_t *bits = gate.mode != GATE_HELD ? calloc (s->layout.geo.nr_words + 1, 8) : NULL;

  for (uint32_t i = t->nr; i-- > 0;) {
    changed[i] = -1;
    if (bits != NULL && clock_ms () - begun < COUNT_MS)
      changed[i] = add_recording (s, t, i, bits);
    if (changed[i] == -1) {
      free (bits); /* what comes before is not known either */
      bits = NULL;
    }
  }
  free (bits);
}

static json_t *
bytes_or_null (const struct state *s, int64_t blocks)
{
  return blocks == -1 ? json_null ()
                      : json_integer ((json_int_t)blocks << s->layout.geo.block_shift);
}

static json_t *
describe (const struct state *s, const struct state_view *now, const struct state_table *t,
          uint32_t i, int64_t changed)
{
  const struct state_checkpoint *c = &t->list[i];
  int fault = state_table_fault (t, i);
  bool active = t->recording && i + 1 == t->nr;
  char uuid[UUID_TEXT_BYTES];

  uuid_text (c->uuid, uuid);
  if (fault == -1 && now->lost)
    return json_pack ("{s:s, s:s, s:o, s:I, s:I, s:b, s:s, s:s, s:o}", "name", c->name, "uuid",
                      uuid, "parent", i > 0 ? json_string (t->list[i - 1].name) : json_null (),
                      "created-us", (json_int_t)c->created_us, "size", (json_int_t)c->disk_size,
                      "recording", active, "status", "inconsistent", "reason", now->reason,
                      "changed-bytes", json_null ());
  return json_pack ("{s:s, s:s, s:o, s:I, s:I, s:b, s:s, s:o, s:o}", "name", c->name, "uuid", uuid,
                    "parent", i > 0 ? json_string (t->list[i - 1].name) : json_null (),
                    "created-us", (json_int_t)c->created_us, "size", (json_int_t)c->disk_size,
                    "recording", active, "status", fault == -1 ? "consistent" : "inconsistent",
                    "reason", fault == -1 ? json_null () : json_string (t->list[fault].fault),
                    "changed-bytes", bytes_or_null (s, changed));
}

void
checkpoints_list (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t from)
{
  struct state *s = &m->persist.state;

  if (!m->persist.open) {
    control_error (peer, id, "NoStateFile", "%s", NO_STATE_FILE);
    return;
  }
  int64_t changed[STATE_CHECKPOINTS_MAX];
  json_t *list = json_array ();
  persist_check_disk (m);
  struct state_view now;
  state_look (s, &now);
  const struct state_table *t = s->table; /* only our thread changes it */
  uint32_t nr = t != NULL ? t->nr : 0;

  if (t != NULL)
    count_changes (m, t, changed);
  for (uint64_t i = from; i < nr && i - from < LIST_MAX; i++)
    json_array_append_new (list, describe (s, &now, t, (uint32_t)i, changed[i]));
  control_reply (peer, id, json_pack ("{s:o, s:I}", "checkpoints", list, "total", (json_int_t)nr),
                 -1);
}

/* What the destination of the job that is under way, or left over, may lack. */
static int
job_bits (struct mirror *m, uint64_t *bits, char **error)
{
  const struct region *r = m->attachment.region;

  if (r == NULL)
    return text_error (error, "there is no job '%s', and no checkpoint is named", DEFAULT_ID);
  return claims_or_all (r, bits, LOOK_MS)
             ? 0
             : text_error (error, "the job is too busy to be looked at");
}

/* Is there such a checkpoint, and not to be believed? */
static bool
is_inconsistent (struct mirror *m, const char *name)
{
  struct state *s = &m->persist.state;
  struct state_view now;

  state_look (s, &now);
  int i = name != NULL && s->table != NULL ? state_table_find (s->table, name) : -1;

  return i != -1 && (now.lost || state_table_fault (s->table, (uint32_t)i) != -1);
}

void
checkpoints_map (struct mirror *m, struct control_peer *peer, json_t *id, const char *since)
{
  CLEANUP_TEXT char *error = NULL;
  struct region_geometry geo = { 0 };
  CLEANUP_FD int fd = memfd_create ("nbdmirror-map", MFD_CLOEXEC);

  if (since != NULL && !m->persist.open) {
    control_error (peer, id, "NoStateFile", "%s", NO_STATE_FILE);
    return;
  }
  if (since != NULL)
    geo = m->persist.state.layout.geo;
  else if (m->attachment.region != NULL)
    geo = m->attachment.region->geo;
  if (since != NULL)
    persist_check_disk (m);
  size_t bytes = geo.nr_words * 8 + 8; /* never empty */
  if (fd == -1 || ftruncate (fd, (off_t)bytes) == -1) {
    control_error (peer, id, "GenericError", "memfd_create: %s", strerror (errno));
    return;
  }
  uint64_t *bits = mmap (NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (bits == MAP_FAILED) {
    control_error (peer, id, "GenericError", "mmap: %s", strerror (errno));
    return;
  }
  int r = since != NULL ? state_changed_now (&m->persist.state, since, bits, &error)
                        : job_bits (m, bits, &error);
  munmap (bits, bytes);
  if (r == -1)
    control_error (peer, id, is_inconsistent (m, since) ? "Inconsistent" : "GenericError", "%s",
                   error);
  else
    control_reply (peer, id,
                   json_pack ("{s:I, s:I, s:I}", "size", (json_int_t)geo.disk_size, "block-size",
                              (json_int_t)geo.block_size, "blocks", (json_int_t)geo.nr_blocks),
                   fd);
}
