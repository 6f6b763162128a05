/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * After the commit: seal the destinations, and start the guest there.
 *
 * Nothing that happens here changes any more what is right.  So it is done at the same time: the
 * destinations are sealed, and the fences are made durable while the destination starts already.
 * The connections for the seals are made while the guest still runs at the source.
 */

#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/migrate/adopted.h"
#include "cmd/migrate/migrate.h"
#include "mirror/endpoint/seal.h"

#define START_MS 20000 /* for the destination to run */
#define CONT_TRIES 3
#define CONT_PAUSE_MS 100

/* ---- sealing -------------------------------------------------------------------------------- */

struct seal {
  pthread_t thread;
  bool started;
  struct disk *disk;
  bool given_back; /* by a try before us: sealed, and not served any more */
  int r;
  char *error;
};

struct finalizing {
  struct coordinator *coordinator;
  struct coordinator_result *result;
  pthread_t thread;
  bool started;
  char *error; /* NULL: every filter has confirmed */
};

static void *
seal_one (void *opaque)
{
  struct seal *s = opaque;

  if (!s->given_back)
    s->r = destination_seal_over (s->disk->dest, &s->disk->seal, &s->error);
  return NULL;
}

static void *
connect_one (void *opaque)
{
  struct seal *s = opaque;

  destination_seal_connect (s->disk->dest, &s->disk->seal);
  return NULL;
}

/* STEP for each disk at the same time.  For free(), or NULL. */
static struct seal *
for_each_seal (struct migrate *m, void *(*step) (void *))
{
  struct disks *d = &m->disks;
  struct seal *seals = calloc (d->nr, sizeof *seals);

  for (unsigned i = 0; seals != NULL && i < d->nr; i++) {
    seals[i].disk = &d->disk[i];
    seals[i].given_back = m->recovering && adopted_was_given_back (m, seals[i].disk);
  }
  for (unsigned i = 0; seals != NULL && i < d->nr; i++) {
    seals[i].started = pthread_create (&seals[i].thread, NULL, step, &seals[i]) == 0;
    if (!seals[i].started)
      step (&seals[i]);
  }
  for (unsigned i = 0; seals != NULL && i < d->nr; i++)
    if (seals[i].started)
      pthread_join (seals[i].thread, NULL);
  return seals;
}

void
finish_connect_seals (struct migrate *m)
{
  free (for_each_seal (m, connect_one));
}

static void
close_seals (struct disks *d)
{
  for (unsigned i = 0; i < d->nr; i++)
    destination_seal_close (&d->disk[i].seal, true);
}

static void *
finalize (void *opaque)
{
  struct finalizing *f = opaque;

  coordinator_finalize (f->coordinator, f->result, &f->error);
  return NULL;
}

/* A destination that cannot be reached now, between the commit and the start, has died with the
 * guest's disk. */
static int
seal_all (struct migrate *m)
{
  struct seal *seals = for_each_seal (m, seal_one);

  if (seals == NULL)
    return journal_fail (&m->journal, EXIT_DEST_FAILED, "out of memory");
  int r = 0;
  for (unsigned i = 0; i < m->disks.nr; i++) {
    journal_event (&m->journal, "sealed",
                   json_pack ("{s:s, s:i, s:s*}", "destination", seals[i].disk->dest, "result",
                              seals[i].r, "error", seals[i].error));
    if (seals[i].r == -1)
      r = journal_fail_with (&m->journal, EXIT_DEST_FAILED, seals[i].error);
    else
      text_free (seals[i].error);
  }
  free (seals);
  return r;
}

int
finish_hand_over (struct migrate *m, int (*start) (struct migrate *m))
{
  struct finalizing f = { .coordinator = m->coordinator, .result = &m->result };

  f.started = pthread_create (&f.thread, NULL, finalize, &f) == 0;
  if (!f.started)
    finalize (&f);
  int r = seal_all (m);
  if (r == 0) {
    progress_phase (m, PHASE_START);
    r = start (m);
  }
  close_seals (&m->disks);
  if (f.started)
    pthread_join (f.thread, NULL);
  if (f.error != NULL) {
    cmd_warning ("%s", f.error);
    journal_text (&m->journal, "not-confirmed", f.error);
  }
  text_free (f.error);
  return r;
}

/* ---- start ---------------------------------------------------------------------------------- */

/* Once.  1: the guest runs.  0: it may do so yet.  -1: it will not.  *UNANSWERED becomes true if it
 * was not waited for whether QEMU does it. */
static int
send_cont (struct migrate *m, bool *unanswered, char **error)
{
  struct machine *dest = &m->machines.dest;
  bool refused;

  if (dest->qmp != NULL && machine_events (dest) == 0) {
    m->cont_sent = true;
    notes_cont_sent (m->notes, true);
    dest->unanswered = false;
    if (machine_call (dest, "cont", NULL, NULL, &refused, error) == 0)
      return 1;
    *unanswered = *unanswered || dest->unanswered;
    if (refused)
      return 0;
  }
  /* The connection is lost.  QEMU says RESUME before a processor runs, and what it said before it
   * died can still be read. */
  if (dest->resume_ns > 0)
    return -1;
  if (dest->qmp != NULL)
    return 0;
  if (machines_wait_dead (&m->machines, dest)) {
    if (*error == NULL)
      text_error (error, "the destination QEMU has died");
    m->cont_sent = *unanswered;
    return -1;
  }
  text_free (*error);
  *error = NULL;
  return machine_connect (dest, error);
}

static bool
waits_for_cont (const char *status)
{
  return strcmp (status, "paused") == 0 || strcmp (status, "inmigrate") == 0
         || strcmp (status, "prelaunch") == 0;
}

/* Send `cont` until the guest runs.  -1 with *ERROR: it does not, and m->cont_sent is false if it
 * certainly has not run. */
static int
start_dest (struct migrate *m, char **error)
{
  struct machine *dest = &m->machines.dest;
  bool unanswered = false;
  char status[32] = "";
  int r = 0;

  for (int try = 0; try < CONT_TRIES && r == 0; try++) {
    text_free (*error);
    *error = NULL;
    if (try > 0)
      machines_wait (&m->machines, CONT_PAUSE_MS);
    r = send_cont (m, &unanswered, error);
  }
  /* QEMU carries commands out one after the other: with this answer it is done with those that we
   * have not waited for, and may have run the guest without our hearing of it. */
  if (r == 0 && unanswered)
    machine_status (dest, status);
  if (r == 1 || strcmp (status, "running") == 0) {
    text_free (*error);
    *error = NULL;
    return 0;
  }
  /* A QEMU that still answers, and never said RESUME, has not run it. */
  bool answers = dest->qmp != NULL && (!unanswered || waits_for_cont (status));
  bool never_ran = dest->resume_ns == 0 && (!m->cont_sent || answers);
  m->cont_sent = !never_ran;
  notes_cont_sent (m->notes, m->cont_sent);
  return -1;
}

int
finish_start (struct migrate *m)
{
  struct machine *dest = &m->machines.dest;
  char *error = NULL;

  dest->resume_ns = 0;
  if (start_dest (m, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  uint64_t end = clock_ms () + START_MS;
  char status[32];
  do {
    machines_wait (&m->machines, 1);
    machine_status (dest, status);
    if (strcmp (status, "running") == 0) {
      if (dest->resume_ns == 0)
        dest->resume_ns = clock_ns ();
      return 0;
    }
  } while (clock_ms () < end && (status[0] != '\0' || !machine_is_dead (dest)));
  return journal_fail (&m->journal, EXIT_ERROR, "the destination VM was told to run, and is '%s'",
                       status[0] != '\0' ? status : "gone");
}
