/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checkpoints in a state file that no server uses.  See offline.h.
 *
 * To remove one is what a server would do that starts, removes it, and ends cleanly: so whatever
 * kills us in between leaves what a killed server leaves.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/range-lock.h"
#include "base/text.h"
#include "base/uuid.h"
#include "cmd/checkpoint/offline.h"
#include "cmd/cmd.h"
#include "dirty-bitmap/state/file.h"
#include "dirty-bitmap/state/recordings.h"

struct offline {
  const char *path;
  struct state_file file;
  struct state_io io;
  struct state_found found;
  uint8_t boot[16];
};

/* Nobody may use it meanwhile.  Who only reads cannot keep others out, but sees that they are
 * there. */
static int
keep_out (struct offline *o, bool read_only)
{
  CLEANUP_TEXT char *error = NULL;
  bool busy = false;

  if (read_only)
    busy = range_is_locked (o->file.fd, 0, 0);
  else if (state_file_lock (&o->file, &busy, &error) == 0)
    return 0;
  if (busy)
    cmd_say ("%s: a server uses it: name that server's control socket instead", o->path);
  else if (error != NULL)
    cmd_say ("%s: %s", o->path, error);
  return busy || error != NULL ? -1 : 0;
}

static int
look (struct offline *o, const char *disk)
{
  CLEANUP_TEXT char *error = NULL;
  struct state_identity now;
  struct stat st;

  if (disk != NULL)
    o->file.disk_fd = open (disk, O_RDONLY | O_CLOEXEC);
  if (disk != NULL && o->file.disk_fd == -1) {
    cmd_say ("%s: %s", disk, strerror (errno));
    return -1;
  }
  if (fstat (o->file.fd, &st) == -1) {
    cmd_say ("%s: %s", o->path, strerror (errno));
    return -1;
  }
  state_boot_id (o->boot);
  state_identity_of (o->file.disk_fd, &now);
  if (state_find (o->file.fd, (uint64_t)st.st_size, o->boot, disk != NULL ? &now : NULL, &o->found,
                  &error)
      == -1) {
    cmd_say ("%s: %s", o->path, error);
    return -1;
  }
  if (disk == NULL && o->found.tracked && o->found.super.identity.known)
    cmd_warning ("%s: whether the disk was changed without a server is not looked at: --disk FILE"
                 " does that",
                 o->path);
  return 0;
}

struct offline *
offline_open (const char *path, const char *disk, bool read_only)
{
  struct offline *o = calloc (1, sizeof *o);

  if (o == NULL) {
    cmd_say ("%s", strerror (errno));
    return NULL;
  }
  o->path = path;
  o->file = (struct state_file)STATE_FILE_INIT;
  o->file.fd = open (path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  o->io = state_file_io (&o->file);
  if (o->file.fd == -1)
    cmd_say ("%s: %s", path, strerror (errno));
  else if (keep_out (o, read_only) == 0 && look (o, disk) == 0)
    return o;
  offline_close (o);
  return NULL;
}

void
offline_close (struct offline *o)
{
  if (o == NULL)
    return;
  state_found_free (&o->found);
  state_file_close (&o->file);
  free (o);
}

/* Why checkpoint I is inconsistent, or NULL. */
static const char *
fault_of (const struct state_found *f, uint32_t i)
{
  int fault = state_table_fault (f->table, i);

  if (fault != -1)
    return f->table->list[fault].fault;
  return f->how == STATE_FROM_NOTHING ? f->reason : NULL;
}

/* What was changed since checkpoint I.  NULL with *ERROR. */
static uint64_t *
changed_since (struct offline *o, uint32_t i, char **error)
{
  const struct state_found *f = &o->found;
  uint64_t nr_words = f->layout.geo.nr_words;
  uint64_t *bits = calloc (nr_words + 1, 8);

  if (bits == NULL) {
    text_error (error, "out of memory");
    return NULL;
  }
  if (state_changed_since (&f->layout, f->table, i, o->io.read, o->io.opaque, bits, error) == 0) {
    for (uint64_t w = 0; w < nr_words; w++)
      bits[w] |= f->recorded[w];
    return bits;
  }
  free (bits);
  return NULL;
}

/* CHANGED[i]: bytes changed since checkpoint i, or -1 where that is not known.  Each recording is
 * read once: what was changed since a checkpoint is its own one and what the later ones have. */
static void
count_changes (struct offline *o, int64_t *changed)
{
  const struct state_found *f = &o->found;
  const struct region_geometry *geo = &f->layout.geo;
  const struct state_table *t = f->table;
  uint64_t *bits = NULL, bad;

  for (uint32_t i = t->nr; i-- > 0;) {
    CLEANUP_TEXT char *error = NULL;
    bool good = fault_of (f, i) == NULL;
    if (i + 1 == t->nr && good)
      bits = changed_since (o, i, &error);
    else if (good && bits != NULL)
      good = state_read_recording (&f->layout, &t->list[i], o->io.read, o->io.opaque, bits, &bad,
                                   &error)
             == 0;
    if (!good) { /* what comes before is not known either */
      free (bits);
      bits = NULL;
    }
    uint64_t n = 0;
    for (uint64_t w = 0; bits != NULL && w < geo->nr_words; w++)
      n += (uint64_t)__builtin_popcountll (bits[w]);
    changed[i] = bits != NULL
                     ? (int64_t)((n < geo->nr_blocks ? n : geo->nr_blocks) << geo->block_shift)
                     : -1;
  }
  free (bits);
}

json_t *
offline_list (struct offline *o)
{
  const struct state_table *t = o->found.table;
  int64_t changed[STATE_CHECKPOINTS_MAX];
  json_t *list = json_array ();

  if (t != NULL)
    count_changes (o, changed);
  for (uint32_t i = 0; t != NULL && i < t->nr; i++) {
    const struct state_checkpoint *c = &t->list[i];
    const char *fault = fault_of (&o->found, i);
    char uuid[UUID_TEXT_BYTES];
    uuid_text (c->uuid, uuid);
    json_array_append_new (
        list, json_pack ("{s:s, s:s, s:o, s:I, s:I, s:b, s:s, s:o, s:o}", "name", c->name, "uuid",
                         uuid, "parent", i > 0 ? json_string (t->list[i - 1].name) : json_null (),
                         "created-us", (json_int_t)c->created_us, "size", (json_int_t)c->disk_size,
                         "recording", t->recording && i + 1 == t->nr, "status",
                         fault == NULL ? "consistent" : "inconsistent", "reason",
                         fault != NULL ? json_string (fault) : json_null (), "changed-bytes",
                         changed[i] != -1 ? json_integer (changed[i]) : json_null ()));
  }
  return list;
}

/* Be a server for a moment. */
static int
remove_as_server (struct offline *o, struct state *s, const char *name, char **error)
{
  const struct state_found *f = &o->found;
  uint8_t uuid[16];

  uuid_make (uuid);
  if (!f->tracked)
    return state_know (s, f) == 0 ? state_checkpoint_remove (s, name, error)
                                  : text_error (error, "out of memory");
  if ((f->bits != NULL && state_file_map_job (&o->file, &f->layout, error) == -1)
      || (f->recorded != NULL && state_file_map_recordings (&o->file, &f->layout, error) == -1)
      || state_continue (s, f, o->file.live, o->file.slots, uuid, o->boot, error) == -1)
    return -1;
  int r = state_checkpoint_remove (s, name, error);
  state_close_clean (s, &f->super.identity);
  return r;
}

int
offline_remove (struct offline *o, const char *name)
{
  CLEANUP_TEXT char *error = NULL;
  struct state s;

  if (o->found.tracked && o->found.how != STATE_FROM_CLEAN) {
    cmd_say ("%s: its last server did not end cleanly: start the server, then remove '%s' there",
             o->path, name);
    return -1;
  }
  state_init (&s, &o->io);
  int r = remove_as_server (o, &s, name, &error);
  state_destroy (&s);
  if (r == -1)
    cmd_say ("%s: %s", o->path, error);
  return r;
}

uint64_t *
offline_map (struct offline *o, const char *since, uint64_t *size, uint64_t *block_size,
             bool *refused)
{
  struct state_found *f = &o->found;
  CLEANUP_TEXT char *error = NULL;
  uint64_t *bits = NULL;

  *refused = false;
  *size = f->layout.geo.disk_size;
  *block_size = f->layout.geo.block_size;
  if (since == NULL) {
    bits = f->bits;
    f->bits = NULL;
    if (bits == NULL)
      cmd_say ("%s: there is no job, and no checkpoint is named", o->path);
    return bits;
  }
  int i = f->table != NULL ? state_table_find (f->table, since) : -1;
  const char *fault = i != -1 ? fault_of (f, (uint32_t)i) : NULL;
  if (i == -1)
    cmd_say ("%s: there is no checkpoint '%s'", o->path, since);
  else if (fault != NULL) {
    cmd_say ("%s: checkpoint '%s' is inconsistent: %s", o->path, since, fault);
    *refused = true;
  } else if ((bits = changed_since (o, (uint32_t)i, &error)) == NULL)
    cmd_say ("%s: %s", o->path, error);
  return bits;
}
