/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup-agent: the end of a line at which a repository of backups is (far.h).  It does
 * what the other end asks for, one call after the other, with the same functions that a backup into
 * a local directory uses (cmd/backup/store.h).
 *
 * A line that is lost ends it.  The locks go with the process, and so do the files of a backup that
 * has no manifest by then; its mark stays, since a job of it may be left over at a disk's server.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/chain.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/store-far.h"
#include "cmd/backup/store.h"
#include "cmd/cmd.h"
#include "cmd/far/far.h"
#include "cmd/far/line.h"
#include "cmd/far/run-there.h"

#define CALLS_TO_OPEN 3

struct agent {
  const char *path;
  struct store store;
  struct far_line line;
  bool is_open;
  int status; /* of the call that fails */
  char **ids; /* of the disks of the run; owned, as all of them */
  unsigned nr_ids;
  char name[BACKUP_NAME_MAX]; /* of the run that has begun; "": none */
  char *include;              /* a file that is being written, below the repository; NULL: none */
  int include_fd;
};

static const char *
text_of (const json_t *o, const char *key)
{
  return json_string_value (json_object_get (o, key));
}

/* A call without what it needs. */
static json_t *
wrong (char **error)
{
  text_error (error, "the agent was asked for something that it does not know: is the nbdmirror"
                     " there of another version?");
  return NULL;
}

/* ---- the calls.  Each returns a new reference, or NULL with *ERROR ---- */

static json_t *
do_open (struct agent *a, const json_t *with, char **error)
{
  (void)with;
  if (a->is_open || a->store.missing || far_is_meant (a->path))
    return wrong (error);
  if (store_open (&a->store, a->path, error) == -1)
    return NULL;
  a->is_open = true;
  return json_pack ("{s:s}", "uuid", a->store.repo.uuid);
}

static json_t *
do_look (struct agent *a, const json_t *with, char **error)
{
  (void)with;
  if (a->is_open || a->store.missing || far_is_meant (a->path))
    return wrong (error);
  if (store_look (&a->store, a->path, error) == -1)
    return NULL;
  a->is_open = !a->store.missing;
  return a->is_open ? json_pack ("{s:s}", "uuid", a->store.repo.uuid)
                    : json_pack ("{s:b}", "missing", true);
}

static json_t *
do_make (struct agent *a, const json_t *with, char **error)
{
  (void)with;
  if (!a->store.missing)
    return wrong (error);
  if (store_make (&a->store, error) == -1)
    return NULL;
  a->is_open = true;
  return json_pack ("{s:s}", "uuid", a->store.repo.uuid);
}

static json_t *
do_lock (struct agent *a, const json_t *with, char **error)
{
  const char *id = text_of (with, "disk");

  if (id == NULL || backup_disk_id_fault (id) != NULL)
    return wrong (error);
  return store_lock (&a->store, id, &a->status, error) == 0 ? json_object () : NULL;
}

static json_t *
do_list (struct agent *a, const json_t *with, char **error)
{
  struct backup_list list;

  (void)with;
  if (store_list (&a->store, &list, error) == -1)
    return NULL;
  json_t *all = json_array ();
  for (unsigned i = 0; i < list.nr; i++) {
    const struct backup_entry *e = &list.list[i];
    json_t *manifest = e->fault == NULL ? manifest_to_json (&e->manifest) : json_null ();
    json_array_append_new (all, json_pack ("{s:s, s:o, s:o}", "name", e->name, "fault",
                                           manifest_text_or_null (e->fault), "manifest", manifest));
  }
  repository_list_free (&list);
  return json_pack ("{s:o}", "backups", all);
}

static json_t *
do_chain (struct agent *a, const json_t *with, char **error)
{
  const char *name = text_of (with, "backup"), *id = text_of (with, "disk");
  struct backup_list list;

  if (name == NULL || id == NULL)
    return wrong (error);
  if (store_list (&a->store, &list, error) == -1)
    return NULL;
  CLEANUP_TEXT char *fault = store_chain_fault (&a->store, &list, name, id);
  repository_list_free (&list);
  return json_pack ("{s:o}", "fault", manifest_text_or_null (fault));
}

static json_t *
do_was_begun (struct agent *a, const json_t *with, char **error)
{
  const char *id = text_of (with, "disk");

  return id != NULL ? json_pack ("{s:b}", "begun", store_was_begun (&a->store, id)) : wrong (error);
}

static json_t *
do_begin (struct agent *a, const json_t *with, char **error)
{
  const json_t *disks = json_object_get (with, "disks"), *one;
  size_t i, nr = json_array_size (disks);

  if (a->ids != NULL || nr == 0)
    return wrong (error);
  a->ids = calloc (nr, sizeof *a->ids);
  json_array_foreach (disks, i, one)
  {
    const char *id = json_string_value (one);
    if (a->ids == NULL || id == NULL || backup_disk_id_fault (id) != NULL)
      return wrong (error);
    a->ids[a->nr_ids++] = text_copy (id);
  }
  int64_t us = json_integer_value (json_object_get (with, "us"));
  char name[BACKUP_NAME_MAX];
  if (store_begin (&a->store, us, a->ids, a->nr_ids, name, error) == -1)
    return NULL;
  strcpy (a->name, name);
  return json_pack ("{s:s}", "name", name);
}

static void
on_tidied (void *opaque, const char *name)
{
  json_array_append_new (opaque, json_string (name));
}

static json_t *
do_tidy (struct agent *a, const json_t *with, char **error)
{
  json_t *names = json_array ();

  (void)with, (void)error;
  store_tidy (&a->store, a->name, a->ids, a->nr_ids, on_tidied, names);
  return json_pack ("{s:o}", "tidied", names);
}

static void
give_up (struct agent *a, bool keep_mark)
{
  if (a->name[0] != '\0')
    store_give_up (&a->store, a->name, a->ids, a->nr_ids, keep_mark);
  a->name[0] = '\0';
}

static json_t *
do_give_up (struct agent *a, const json_t *with, char **error)
{
  (void)error;
  give_up (a, json_is_true (json_object_get (with, "keep-mark")));
  return json_object ();
}

/* Is FILE one that the run makes? */
static bool
is_ours (const struct agent *a, const char *file)
{
  bool ours = false;

  for (unsigned i = 0; i < a->nr_ids && file != NULL && a->name[0] != '\0'; i++)
    ours |= backup_file_is_of (file, a->ids[i], a->name);
  return ours;
}

static json_t *
do_make_file (struct agent *a, const json_t *with, char **error)
{
  const char *file = text_of (with, "file"), *parent = text_of (with, "parent");
  json_int_t size = json_integer_value (json_object_get (with, "size"));
  bool compress = json_is_true (json_object_get (with, "compress"));

  if (!is_ours (a, file) || size < 0)
    return wrong (error);
  return store_make_file (&a->store, file, parent, (uint64_t)size, compress, error) == 0
             ? json_object ()
             : NULL;
}

static json_t *
do_remove_file (struct agent *a, const json_t *with, char **error)
{
  const char *file = text_of (with, "file");

  if (!is_ours (a, file))
    return wrong (error);
  store_remove_file (&a->store, file);
  return json_object ();
}

static json_t *
do_seal (struct agent *a, const json_t *with, char **error)
{
  struct manifest disks = { .name = NULL };
  struct manifest_disk *m = manifest_add_disk (&disks);
  json_t *ret = NULL;

  if (m != NULL && manifest_disk_from_json (m, with, error) == 0) {
    if (!is_ours (a, m->file))
      wrong (error);
    else if (store_seal (&a->store, m, error) == 0)
      ret = json_pack ("{s:o}", "disk", manifest_disk_to_json (m));
  }
  manifest_clear (&disks);
  return ret;
}

/* ---- files beside the disks ---- */

static json_t *
do_include (struct agent *a, const json_t *with, char **error)
{
  const char *file = text_of (with, "file"), *slash = file != NULL ? strrchr (file, '/') : NULL;
  CLEANUP_TEXT char *folder = text_printf ("backups/%s.files", a->name);

  if (slash == NULL || a->name[0] == '\0' || a->include != NULL || slash[1] == '\0'
      || slash[1] == '.' || (size_t)(slash - file) != strlen (folder)
      || strncmp (file, folder, strlen (folder)) != 0)
    return wrong (error);
  CLEANUP_TEXT char *where = repository_path (&a->store.repo, folder);
  CLEANUP_TEXT char *path = repository_path (&a->store.repo, file);
  if (mkdir (where, 0777) == -1 && errno != EEXIST) {
    text_error (error, "%s: %s", where, strerror (errno));
    return NULL;
  }
  a->include_fd = open (path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (a->include_fd == -1) {
    text_error (error, "%s: %s", path, strerror (errno));
    return NULL;
  }
  a->include = text_copy (file);
  return json_object ();
}

static json_t *
do_include_part (struct agent *a, const json_t *with, char **error)
{
  char data[STORE_PART];
  ssize_t n = store_unhex (text_of (with, "data"), data, sizeof data);

  if (a->include == NULL || n == -1)
    return wrong (error);
  if (fd_write_all (a->include_fd, data, (size_t)n) == 0)
    return json_object ();
  text_error (error, "%s: %s", a->include, strerror (errno));
  return NULL;
}

static json_t *
do_include_end (struct agent *a, const json_t *with, char **error)
{
  struct manifest_include m = { .file = a->include };
  json_t *ret = NULL;

  (void)with;
  if (a->include == NULL)
    return wrong (error);
  if (store_include_end (&a->store, &m, error) == 0)
    ret = json_pack ("{s:s}", "digest", m.digest);
  text_free (m.digest);
  text_free (a->include);
  a->include = NULL;
  fd_close (&a->include_fd);
  return ret;
}

static json_t *
do_fetch (struct agent *a, const json_t *with, char **error)
{
  const char *file = text_of (with, "file");
  json_int_t from = json_integer_value (json_object_get (with, "from"));
  char data[STORE_PART];

  if (file == NULL || strncmp (file, "backups/", 8) != 0 || strstr (file, "/.") != NULL)
    return wrong (error);
  CLEANUP_TEXT char *path = repository_path (&a->store.repo, file);
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  ssize_t n = fd != -1 ? pread (fd, data, sizeof data, from) : -1;
  if (n == -1) {
    text_error (error, "%s: %s", path, strerror (errno));
    return NULL;
  }
  CLEANUP_TEXT char *text = store_hex (data, (size_t)n);
  return json_pack ("{s:s}", "data", text);
}

/* ---- the end of a run ---- */

static json_t *
do_write (struct agent *a, const json_t *with, char **error)
{
  struct manifest m;
  json_t *ret = NULL;

  if (a->name[0] == '\0')
    return wrong (error);
  if (manifest_from_json (&m, json_object_get (with, "manifest"), a->name, error) == -1)
    return NULL;
  bool keep_mark = json_is_true (json_object_get (with, "keep-mark"));
  if (store_write (&a->store, &m, keep_mark, error) == 0) {
    a->name[0] = '\0';
    ret = json_pack ("{s:I}", "sequence", (json_int_t)m.sequence);
  }
  manifest_clear (&m);
  return ret;
}

/* ---------------------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  json_t *(*run) (struct agent *a, const json_t *with, char **error);
} calls[] = {
  { "open", do_open }, /* the first CALLS_TO_OPEN are those to begin with */
  { "look", do_look },
  { "make", do_make },
  { "lock", do_lock },
  { "list", do_list },
  { "chain", do_chain },
  { "was-begun", do_was_begun },
  { "begin", do_begin },
  { "tidy", do_tidy },
  { "give-up", do_give_up },
  { "make-file", do_make_file },
  { "remove-file", do_remove_file },
  { "seal", do_seal },
  { "include", do_include },
  { "include-part", do_include_part },
  { "include-end", do_include_end },
  { "fetch", do_fetch },
  { "write", do_write },
};

/* Do what CALL says.  The answer, a new reference. */
static json_t *
answer (struct agent *a, const json_t *call)
{
  const char *what = text_of (call, "do");
  CLEANUP_TEXT char *error = NULL;
  json_t *o = NULL;

  a->status = EXIT_DEST_FAILED;
  for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
    if (what != NULL && strcmp (calls[i].name, what) == 0 && (a->is_open || i < CALLS_TO_OPEN))
      o = calls[i].run (a, json_object_get (call, "with"), &error);
  if (o == NULL && error == NULL)
    wrong (&error);
  return o != NULL ? o
                   : json_pack ("{s:o, s:i}", "error", manifest_text_to_json (error), "status",
                                a->status);
}

static bool
go_on (void *opaque)
{
  return !far_line_is_closed (opaque);
}

/* Until the other end goes. */
static int
serve (struct agent *a)
{
  json_t *o = json_pack ("{s:i}", "nbdmirror-backup-agent", FAR_VERSION);
  char *error = NULL;
  bool sent = far_line_send (&a->line, o, &error) == 0;

  json_decref (o);
  while (sent && (o = far_line_receive (&a->line, NULL, NULL, &error)) != NULL) {
    json_t *reply = answer (a, o);
    json_decref (o);
    sent = far_line_send (&a->line, reply, &error) == 0;
    json_decref (reply);
  }
  if (error != NULL)
    cmd_say ("%s", error);
  int status = error != NULL ? EXIT_ERROR : EXIT_DONE;
  text_free (error);
  return status;
}

static int
run (struct cmd_line *line)
{
  struct agent a = { .include_fd = -1 };

  line->keep_rest = true;
  if (cmd_getopt (line) != -1)
    return line->status;
  if (line->nr_operands == 0 && line->nr_rest > 0)
    return run_there (line->rest);
  if (!cmd_operands_ok (line, 1, 1, "REPO"))
    return line->status;
  a.path = line->operands[0].argv[0];
  a.store.go_on = go_on;
  a.store.opaque = &a.line;
  if (far_line_begin (&a.line, STDIN_FILENO, STDOUT_FILENO) == -1) {
    cmd_say ("%s", strerror (errno));
    return EXIT_ERROR;
  }
  int status = serve (&a);
  far_line_end (&a.line);
  give_up (&a, true);
  fd_close (&a.include_fd);
  text_free (a.include);
  for (unsigned i = 0; i < a.nr_ids; i++)
    text_free (a.ids[i]);
  free (a.ids);
  store_close (&a.store);
  return status;
}

const struct subcommand subcommand_backup_agent = {
  "backup-agent",
  "REPO",
  "Tend a repository of backups for another host.",
  "It is started through ssh where a repository is given as ssh://HOST/DIR, and does on this host\n"
  "what the program on the other host asks for, on its standard input and output.  You have no\n"
  "reason to start it yourself.\n",
  NULL,
  NULL,
  "With -- SUBCOMMAND ARGS it runs that, and ends it when its standard input is closed.\n"
  "\n"
  "Example, as it is started by backup-list ssh://HOST/srv/backups:\n"
  "  nbdmirror backup-agent -- backup-list /srv/backups\n",
  run,
};
