/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that the repository of backups takes good names only, that a manifest comes back as it was
 * written and a bad one is refused, that a backup is incremental only if everything speaks for it,
 * that a chain with a missing part is found, and that tidying up removes what an interrupted run
 * has left and nothing else.
 */

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/begun.h"
#include "backup/chain.h"
#include "backup/lock.h"
#include "backup/names.h"
#include "backup/plan.h"
#include "backup/repository.h"
#include "base/fd.h"
#include "base/text.h"
#include "tests/unit/unit.h"

#define DIGEST "00112233445566778899aabbccddeeff"

Test (backup, disk_names)
{
  static const char *const good[]
      = { "vda", "a disk", "f\xc3\xbcr", "a.b", "nbd", "x-\xf0\x9f\x92\xbe" };
  static const char *const bad[] = { "",
                                     ".",
                                     "..",
                                     ".x",
                                     "a/b",
                                     "backups",
                                     "a\nb",
                                     "\x7f",
                                     "\xff",
                                     "\xc0\xaf",
                                     "a\xc3",
                                     "\xed\xa0\x80",
                                     "\xf4\x90\x80\x80",
                                     "nbdmirror-repository.json" };
  char longest[BACKUP_DISK_ID_MAX + 2];

  for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++)
    cr_assert (backup_disk_id_fault (good[i]) == NULL, "'%s' was refused", good[i]);
  for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
    cr_assert (backup_disk_id_fault (bad[i]) != NULL, "'%s' was taken", bad[i]);
  memset (longest, 'x', sizeof longest);
  longest[BACKUP_DISK_ID_MAX + 1] = '\0';
  cr_assert (backup_disk_id_fault (longest) != NULL);
  longest[BACKUP_DISK_ID_MAX] = '\0';
  cr_assert (backup_disk_id_fault (longest) == NULL);
}

Test (backup, backup_names)
{
  static const char *const bad[] = { "",
                                     "20261128",
                                     "20261128T013000",
                                     "20261128T013000Z-",
                                     "20261128T013000Z-0",
                                     "20261128T013000Z-1x",
                                     "20261128T013000z",
                                     "../61128T013000Z" };
  char name[BACKUP_NAME_MAX];

  backup_name_make (name, INT64_C (1795829400000000), 0);
  cr_assert (strcmp (name, "20261128T013000Z") == 0, "it is %s", name);
  cr_assert (backup_name_ok (name));
  backup_name_make (name, INT64_C (1795829400000000), 12);
  cr_assert (strcmp (name, "20261128T013000Z-12") == 0, "it is %s", name);
  cr_assert (backup_name_ok (name));
  for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
    cr_assert (!backup_name_ok (bad[i]), "'%s' was taken", bad[i]);
}

Test (backup, checkpoint_names)
{
  CLEANUP_TEXT char *mine
      = backup_checkpoint_name ("01234567-aaaa-bbbb-cccc-ddddeeeeffff", "20261128T013000Z");

  cr_assert (backup_checkpoint_is_ours (mine, "01234567-aaaa-bbbb-cccc-ddddeeeeffff"));
  cr_assert (!backup_checkpoint_is_ours (mine, "91234567-aaaa-bbbb-cccc-ddddeeeeffff"));
  cr_assert (!backup_checkpoint_is_ours ("backup-01234567-monday",
                                         "01234567-aaaa-bbbb-cccc-ddddeeeeffff"));
  cr_assert (
      backup_target_is_backup ("[ qemu-nbd --shared=0 /r/a b/20261128T013000Z-1-inc.qcow2 ]"));
  cr_assert (backup_target_is_backup ("[ qemu-nbd x=/r/20261128T013000Z-full.qcow2 ]"));
  cr_assert (!backup_target_is_backup ("[ qemu-nbd --shared=0 /r/a/mine-full.qcow2 ]"));
  cr_assert (backup_target_is_backup (
      "ssh://h/r/a%20b/20261128T013000Z-1-inc.qcow2?format=qcow2&program=/x/y&resume"));
  cr_assert (!backup_target_is_backup ("ssh://h/r/a/mine-inc.qcow2?format=qcow2"));
  cr_assert (!backup_target_is_backup ("nbd://h/20261128T013000Z-full.qcow2"));
  CLEANUP_TEXT char *id = backup_disk_id_from_path ("/run/vm 1/vda.control");
  cr_assert (strcmp (id, "vda") == 0);
}

/* ---- plan ---- */

static bool
plan (const struct backup_facts *f, const char *word)
{
  CLEANUP_TEXT char *reason = NULL;
  bool incremental = backup_plan (f, &reason);

  cr_assert (strstr (reason, word) != NULL, "'%s' does not say '%s'", reason, word);
  return incremental;
}

Test (backup, full_or_incremental)
{
  const struct backup_facts good = { .parent = "20261128T013000Z",
                                     .parent_checkpoint = "k",
                                     .size = 4096,
                                     .parent_size = 4096,
                                     .checkpoint = CHECKPOINT_GOOD };
  struct backup_facts f = good;

  cr_assert (plan (&f, "since backup 20261128T013000Z"));
  f.mode = BACKUP_INCREMENTAL;
  cr_assert (plan (&f, "since"));
  f.mode = BACKUP_FULL;
  cr_assert (!plan (&f, "asked"));
  f = good, f.parent = NULL;
  cr_assert (!plan (&f, "no earlier"));
  f = good, f.chain_fault = "x is missing";
  cr_assert (!plan (&f, "x is missing"));
  f = good, f.chain_files = BACKUP_CHAIN_MAX - 1;
  cr_assert (plan (&f, "since"));
  f.chain_files = BACKUP_CHAIN_MAX;
  cr_assert (!plan (&f, "chain has 500 files"));
  f = good, f.size = f.parent_size = 0;
  cr_assert (!plan (&f, "0 bytes"));
  f = good, f.size = 8192;
  cr_assert (!plan (&f, "8192 now"));
  f = good, f.parent_checkpoint = NULL;
  cr_assert (!plan (&f, "added no checkpoint"));
  f = good, f.checkpoint = CHECKPOINT_NO_STATE;
  cr_assert (!plan (&f, "no state file"));
  f = good, f.checkpoint = CHECKPOINT_MISSING;
  cr_assert (!plan (&f, "any more"));
  f = good, f.checkpoint = CHECKPOINT_OTHER;
  cr_assert (!plan (&f, "not the last backup's"));
  f = good, f.checkpoint = CHECKPOINT_INCONSISTENT, f.checkpoint_reason = "a crash";
  cr_assert (!plan (&f, "inconsistent: a crash"));
}

/* ---- a repository ---- */

struct place {
  char dir[32];
  struct repository r;
};

static void
open_place (struct place *p)
{
  CLEANUP_TEXT char *error = NULL;

  strcpy (p->dir, "/tmp/nbdmirror-unit.XXXXXX");
  cr_assert (mkdtemp (p->dir) != NULL);
  cr_assert (repository_open (&p->r, p->dir, true, &error) == 0, "%s", error);
}

static void
close_place (struct place *p)
{
  CLEANUP_TEXT char *command = text_printf ("rm -r %s", p->dir);

  repository_close (&p->r);
  cr_assert (system (command) == 0);
}

#define HEAD_BYTES 80

/* A file in the repository: the head of a qcow2 file without a backing file. */
static void
put_file (const struct place *p, const char *name)
{
  CLEANUP_TEXT char *path = repository_path (&p->r, name);
  CLEANUP_FD int fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

  const char head[HEAD_BYTES] = "QFI\xfb\0\0\0\2";
  cr_assert (fd != -1 && write (fd, head, sizeof head) == HEAD_BYTES, "%s", path);
}

static bool
is_there (const struct place *p, const char *name)
{
  CLEANUP_TEXT char *path = repository_path (&p->r, name);
  return access (path, F_OK) == 0;
}

static void
add_backup (const struct place *p, const char *name, const char *parent)
{
  CLEANUP_TEXT char *error = NULL;
  struct manifest m = { .name = text_copy (name),
                        .repository = text_copy (p->r.uuid),
                        .program = text_copy ("test"),
                        .host = text_copy ("h"),
                        .host_id = text_copy ("i"),
                        .begun_us = 5,
                        .ended_us = 6 };
  struct manifest_disk *d = manifest_add_disk (&m);

  d->id = text_copy ("a disk");
  d->full = parent == NULL;
  d->file = backup_file_path ("a disk", name, d->full);
  d->reason = text_copy ("why");
  d->size = 1000;
  d->file_bytes = HEAD_BYTES;
  d->digest = text_copy (DIGEST);
  d->file_digest = text_copy (DIGEST);
  d->checkpoint = text_copy ("k");
  d->checkpoint_uuid = text_copy ("u");
  if (parent != NULL) {
    d->parent_backup = text_copy (parent);
    d->parent_file = backup_file_path ("a disk", parent, true);
  }
  put_file (p, d->file);
  cr_assert (repository_write (&p->r, &m, &error) == 0, "%s", error);
  manifest_clear (&m);
}

Test (backup, chain)
{
  CLEANUP_TEXT char *error = NULL;
  const struct manifest_disk *d;
  struct backup_list list;
  struct place p;

  open_place (&p);
  cr_assert (repository_make_disk (&p.r, "a disk", &error) == 0, "%s", error);
  /* The clock was set back in between: the order is that of writing. */
  add_backup (&p, "20261128T013000Z", NULL);
  add_backup (&p, "20251128T013000Z", "20261128T013000Z");
  cr_assert (repository_list (&p.r, &list, &error) == 0, "%s", error);
  cr_assert (list.nr == 2);
  const struct backup_entry *e = chain_newest (&list, "a disk", &d);
  cr_assert (e != NULL && strcmp (e->name, "20251128T013000Z") == 0);
  cr_assert (e->manifest.sequence == 2 && d->size == 1000 && strcmp (d->digest, DIGEST) == 0);
  cr_assert (strcmp (d->parent_file, "a disk/20261128T013000Z-full.qcow2") == 0);
  cr_assert (chain_files (&list, e->name, "a disk") == 2);
  char *fault = chain_fault (&p.r, &list, e->name, "a disk");
  cr_assert (fault == NULL, "%s", fault);
  for (unsigned i = 0; i < list.nr; i++) {
    fault = chain_fault_once (&p.r, &list, list.list[i].name, "a disk");
    cr_assert (fault == NULL, "%s", fault);
  }
  CLEANUP_TEXT char *full = repository_path (&p.r, "a disk/20261128T013000Z-full.qcow2");
  cr_assert (truncate (full, 2) == 0);
  fault = chain_fault (&p.r, &list, e->name, "a disk");
  cr_assert (fault != NULL && strstr (fault, "has 2 bytes") != NULL, "%s", fault);
  text_free (fault);
  cr_assert (unlink (full) == 0);
  fault = chain_fault_once (&p.r, &list, e->name, "a disk");
  cr_assert (fault == NULL, "it was looked at again: %s", fault);
  fault = chain_fault (&p.r, &list, e->name, "a disk");
  cr_assert (fault != NULL && strstr (fault, "full.qcow2: No such file") != NULL, "%s", fault);
  text_free (fault);
  repository_list_free (&list);
  close_place (&p);
}

#define FILE_WORD "\"d/20261128T013000Z-full.qcow2\""
#define INCLUDE(file)                                                                              \
  "\"includes\":[{\"source\":\"/x\",\"file\":\"" file "\",\"bytes\":1,\"digest\":\"d\"}]"

/* Manifests that must not be read. */
Test (backup, bad_manifests)
{
  static const char good[]
      = "{\"format\":\"nbdmirror-backup\",\"version\":1,\"requires\":[],\"name\":\"n\","
        "\"sequence\":1,\"repository\":\"r\",\"program\":\"p\",\"host\":\"h\",\"host-id\":\"i\","
        "\"begun-us\":1,\"ended-us\":2,\"consistency\":\"crash-consistent\",\"includes\":[],"
        "\"hooks\":[],\"disks\":[{\"id\":\"d\",\"kind\":\"full\",\"reason\":null,"
        "\"file\":\"d/"
        "20261128T013000Z-full.qcow2\",\"parent\":null,\"control\":null,\"tracker\":null,"
        "\"checkpoint\":null,\"size\":1,\"file-bytes\":1,\"copied-bytes\":1,\"digest\":null,"
        "\"file-digest\":null,\"pause-ms\":null,\"error\":null}]}";
  static const char *const changes[][2] = {
    { "\"version\":1", "\"version\":2" },
    { "\"requires\":[]", "\"requires\":[\"x\"]" },
    { "\"name\":\"n\"", "\"name\":\"m\"" },
    { FILE_WORD, "\"../20261128T013000Z-full.qcow2\"" },
    { FILE_WORD, "\"/20261128T013000Z-full.qcow2\"" },
    { FILE_WORD, "\"d//20261128T013000Z-full.qcow2\"" },
    { FILE_WORD, "\"d/../20261128T013000Z-full.qcow2\"" },
    { FILE_WORD, "\"e/20261128T013000Z-full.qcow2\"" }, /* another disk's */
    { FILE_WORD, "\"d/notes.txt\"" },
    { FILE_WORD, "\"nbdmirror-repository.json\"" },
    { "\"includes\":[]", INCLUDE ("backups/m.files/x") },
    { "\"includes\":[]", INCLUDE ("backups/n.files/../x") },
    { "\"includes\":[]", INCLUDE ("backups/n.files/") },
    { "\"sequence\":1", "\"sequence\":9223372036854775807" },
    { FILE_WORD, "null" },
    { "\"kind\":\"full\"", "\"kind\":\"incremental\"" },
    { "\"kind\":\"full\"", "\"kind\":\"other\"" },
    { "\"id\":\"d\"", "\"id\":\"..\"" },
    { "\"size\":1", "\"size\":-1" },
    { "\"disks\":[", "\"disks\":[1," },
    { "nbdmirror-backup", "nbdmirror-backup-begun" },
  };
  CLEANUP_TEXT char *why = NULL;
  struct manifest m;

  json_t *o = json_loads (good, 0, NULL);
  cr_assert (manifest_from_json (&m, o, "n", &why) == 0, "%s", why);
  manifest_clear (&m);
  json_decref (o);
  for (unsigned i = 0; i < sizeof changes / sizeof changes[0]; i++) {
    CLEANUP_TEXT char *error = NULL;
    const char *at = strstr (good, changes[i][0]);
    CLEANUP_TEXT char *text = text_printf ("%.*s%s%s", (int)(at - good), good, changes[i][1],
                                           at + strlen (changes[i][0]));
    o = json_loads (text, 0, NULL);
    cr_assert (o != NULL);
    cr_assert (manifest_from_json (&m, o, "n", &error) == -1, "%s was taken", changes[i][1]);
    cr_assert (error != NULL && m.nr_disks == 0);
    json_decref (o);
  }
}

static void
count (void *opaque, const char *name)
{
  (void)name;
  ++*(unsigned *)opaque;
}

Test (backup, texts_of_any_bytes)
{
  struct manifest_disk d = { .id = (char *)"vda",
                             .reason = (char *)"f\xc3\xbcr x\xffy",
                             .error = (char *)"\xc3",
                             .pause_ms = -1 };
  json_t *o = manifest_disk_to_json (&d);

  cr_assert (o != NULL, "a text makes the whole backup fail");
  cr_assert_str_eq (json_string_value (json_object_get (o, "reason")), "f\xc3\xbcr x?y");
  cr_assert_str_eq (json_string_value (json_object_get (o, "error")), "?");
  json_decref (o);
}

Test (backup, tidying)
{
  char *const ids[] = { (char *)"a disk" };
  CLEANUP_TEXT char *error = NULL;
  char name[BACKUP_NAME_MAX];
  unsigned nr = 0;
  struct place p;
  int lock = -1, again = -1;

  open_place (&p);
  cr_assert (repository_make_disk (&p.r, "a disk", &error) == 0, "%s", error);
  cr_assert (repository_lock (&p.r, "a disk", &lock, &error) == 0, "%s", error);
  cr_assert (repository_lock (&p.r, "a disk", &again, &error) == -1);
  cr_assert (strstr (error, "being written to by process") != NULL, "%s", error);
  cr_assert (backup_begin (&p.r, INT64_C (1795829400000000), ids, 1, name, NULL) == 0);
  CLEANUP_TEXT char *file = backup_file_path ("a disk", name, true);
  put_file (&p, file);
  put_file (&p, "a disk/20201128T013000Z-full.qcow2"); /* nobody's */
  put_file (&p, "a disk/notes.txt");
  backup_tidy (&p.r, "", NULL, 0, count, &nr);
  cr_assert (nr == 0 && is_there (&p, file), "a run that goes on was tidied up");
  cr_assert (backup_was_begun (&p.r, "a disk") && !backup_was_begun (&p.r, "disk"));
  fd_close (&lock);
  backup_tidy (&p.r, name, NULL, 0, count, &nr);
  cr_assert (nr == 0 && is_there (&p, file), "our own run was tidied up");
  backup_tidy (&p.r, "", NULL, 0, count, &nr);
  cr_assert (nr == 1 && !is_there (&p, file), "an interrupted run was not tidied up");
  cr_assert (is_there (&p, "a disk/20201128T013000Z-full.qcow2")
             && is_there (&p, "a disk/notes.txt"));
  /* A run whose manifest is there keeps its files. */
  cr_assert (backup_begin (&p.r, INT64_C (1795829400000000), ids, 1, name, NULL) == 0);
  cr_assert (strcmp (name, "20261128T013000Z") == 0, "the name is not free again: %s", name);
  add_backup (&p, name, NULL);
  backup_tidy (&p.r, "", ids, 1, count, &nr);
  cr_assert (nr == 1 && is_there (&p, file) && is_there (&p, "backups/20261128T013000Z.json"));
  cr_assert (!is_there (&p, "backups/20261128T013000Z.begun"));
  /* The manifest is in place, though it may not be durable. */
  cr_assert (backup_begin (&p.r, INT64_C (1795829400000000), ids, 1, name, NULL) == 0);
  add_backup (&p, name, NULL);
  CLEANUP_TEXT char *own = backup_file_path ("a disk", name, true);
  CLEANUP_TEXT char *its = text_printf ("backups/%s.json", name);
  CLEANUP_TEXT char *mark = text_printf ("backups/%s.begun", name);
  CLEANUP_TEXT char *extra = text_printf ("backups/%s.files", name);
  CLEANUP_TEXT char *extra_path = text_printf ("%s/%s", p.r.path, extra);
  cr_assert (mkdir (extra_path, 0777) == 0);
  backup_give_up (&p.r, name, ids, 1, false);
  cr_assert (is_there (&p, own) && is_there (&p, extra) && !is_there (&p, mark));
  cr_assert (rmdir (extra_path) == 0);
  /* Nobody knows what a manifest names that cannot be read. */
  cr_assert (backup_begin (&p.r, INT64_C (1795829405000000), ids, 1, name, NULL) == 0);
  CLEANUP_TEXT char *doubtful = backup_file_path ("a disk", name, true);
  CLEANUP_TEXT char *doubt = text_printf ("backups/%s.begun", name);
  put_file (&p, doubtful);
  put_file (&p, "backups/20251128T013000Z.json");
  backup_tidy (&p.r, "", ids, 1, count, &nr);
  cr_assert (nr == 1 && is_there (&p, doubtful) && is_there (&p, doubt), "nobody would remove it");
  CLEANUP_TEXT char *unread = text_printf ("%s/backups/20251128T013000Z.json", p.r.path);
  cr_assert (unlink (unread) == 0);
  backup_tidy (&p.r, "", ids, 1, count, &nr);
  cr_assert (nr == 2 && !is_there (&p, doubtful) && !is_there (&p, doubt));
  /* Its file may have become that of a later backup, after it was pruned. */
  cr_assert (backup_begin (&p.r, INT64_C (1795829400000001), ids, 1, name, NULL) == 0);
  CLEANUP_TEXT char *taken = backup_file_path ("a disk", name, true);
  add_backup (&p, name, NULL);
  add_backup (&p, "20261129T013000Z", name);
  CLEANUP_TEXT char *pruned = text_printf ("%s/backups/%s.json", p.r.path, name);
  cr_assert (unlink (pruned) == 0);
  backup_tidy (&p.r, "", ids, 1, count, &nr);
  cr_assert (nr == 3 && is_there (&p, taken), "a file that a backup needs was removed");
  close_place (&p);
}
