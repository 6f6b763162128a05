/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror dirty-map: which ranges of a disk were changed since a checkpoint.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/checkpoint/checkpoint.h"
#include "cmd/checkpoint/offline.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"

enum { OPT_DISK = 0x100, OPT_SINCE };

static const struct cmd_option options[] = {
  { "since", OPT_SINCE, "NAME", "what was changed since this checkpoint" },
  { "disk", OPT_DISK, "FILE", "with a state file: its disk, to see if it was changed meanwhile" },
  { "json", 'j', NULL, "print a JSON array" },
  CMD_OPTIONS_END,
};

/* Copy the words that came as FD. */
static int
take_words (struct map *m, int fd, const char *control)
{
  uint64_t blocks = (m->size + m->block_size - 1) / m->block_size;
  size_t bytes = ((blocks + 63) / 64) * 8;
  struct stat st;

  m->bits = malloc (bytes + 8);
  void *p = MAP_FAILED;
  if (fstat (fd, &st) == 0 && st.st_size >= 0 && (uint64_t)st.st_size >= bytes + 8)
    p = mmap (NULL, bytes + 8, PROT_READ, MAP_PRIVATE, fd, 0);
  if (m->bits == NULL || p == MAP_FAILED) {
    cmd_say ("%s: the map cannot be read: %s", control, strerror (errno));
    if (p != MAP_FAILED)
      munmap (p, bytes + 8);
    return -1;
  }
  memcpy (m->bits, p, bytes);
  munmap (p, bytes + 8);
  return 0;
}

static int
ask (struct map *m, const char *control, const char *since)
{
  struct control_client *c = query_connect (control);
  CLEANUP_TEXT char *error = NULL;
  CLEANUP_TEXT char *class_ = NULL;
  CLEANUP_FD int fd = -1;
  json_t *ret = NULL;
  const struct control_call call = { .command = "query-mirror-map",
                                     .args = json_pack ("{s:s*}", "since", since),
                                     .timeout_ms = QUERY_MS,
                                     .ret = &ret,
                                     .got_fd = &fd,
                                     .class_ = &class_ };

  if (c == NULL) {
    json_decref (call.args);
    return EXIT_ERROR;
  }
  int status = EXIT_ERROR;
  if (control_client_call (c, &call, &error) == -1) {
    query_failed (control, error);
    if (class_ != NULL && strcmp (class_, "Inconsistent") == 0)
      status = EXIT_REFUSED;
  } else {
    m->size = (uint64_t)status_number (ret, "size", 0);
    m->block_size = (uint64_t)status_number (ret, "block-size", 0);
    if (fd == -1 || m->block_size == 0)
      cmd_say ("%s: the server passed no map", control);
    else if (take_words (m, fd, control) == 0)
      status = EXIT_DONE;
  }
  json_decref (ret);
  control_client_free (c);
  return status;
}

static int
look_up (struct map *m, const char *path, const char *disk, const char *since)
{
  struct offline *o = offline_open (path, disk, true);
  bool refused = false;

  if (o != NULL)
    m->bits = offline_map (o, since, &m->size, &m->block_size, &refused);
  offline_close (o);
  return m->bits != NULL ? EXIT_DONE : refused ? EXIT_REFUSED : EXIT_ERROR;
}

int
checkpoint_map (struct map *m, const char *place, const char *disk, const char *since)
{
  *m = (struct map){ .bits = NULL };
  return query_is_control (place) ? ask (m, place, since) : look_up (m, place, disk, since);
}

static bool
is_dirty (const struct map *m, uint64_t block)
{
  return (m->bits[block / 64] >> (block % 64) & 1) != 0;
}

/* As nbdinfo --map prints a dirty bitmap. */
static void
print (const struct map *m, bool json)
{
  uint64_t blocks = (m->size + m->block_size - 1) / m->block_size;
  bool first = true;

  if (json)
    printf ("[\n");
  for (uint64_t b = 0, end; b < blocks; b = end) {
    bool dirty = is_dirty (m, b);
    for (end = b + 1; end < blocks && is_dirty (m, end) == dirty; end++)
      ;
    uint64_t offset = b * m->block_size;
    uint64_t length = (end == blocks ? m->size : end * m->block_size) - offset;
    if (json)
      printf ("%s{ \"offset\": %" PRIu64 ", \"length\": %" PRIu64
              ", \"type\": %d, \"description\": \"%s\" }",
              first ? "" : ",\n", offset, length, dirty, dirty ? "dirty" : "clean");
    else
      printf ("%10" PRIu64 "  %10" PRIu64 "  %3d  %s\n", offset, length, dirty,
              dirty ? "dirty" : "clean");
    first = false;
  }
  if (json)
    printf ("\n]\n");
}

static int
run (struct cmd_line *line)
{
  const char *since = NULL, *disk = NULL;
  struct map m;
  bool json = false;
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_SINCE:
      since = optarg;
      break;
    case OPT_DISK:
      disk = optarg;
      break;
    case 'j':
      json = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 1, "CONTROL|STATE-FILE"))
    return line->status;
  int status = checkpoint_map (&m, line->operands[0].argv[0], disk, since);
  if (status == EXIT_DONE)
    print (&m, json);
  free (m.bits);
  return status;
}

const struct subcommand subcommand_dirty_map = {
  "dirty-map",
  "CONTROL|STATE-FILE [--since NAME] [OPTIONS]",
  "Print which ranges of a disk were changed.",
  "With --since: changed since that checkpoint.  Without: what the destination of the mirror job\n"
  "may lack.  Ranges are in whole blocks, in the format of 'nbdinfo --map': offset, length, type\n"
  "(1 dirty, 0 clean) and description.  STATE-FILE is that of a server that is stopped.\n"
  "Exit status 7: the checkpoint is inconsistent, so nobody knows.\n",
  options,
  NULL,
  "Example:\n"
  "  nbdmirror dirty-map /var/lib/nbdmirror/vm1a.control --since monday --json\n",
  run,
};
