/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See notes.h.
 */

#include "config.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cmd/migrate/notes.h"

#define TEXT_MAX 2048

struct text {
  _Atomic bool there;
  char text[TEXT_MAX];
};

struct notes {
  size_t size;
  _Atomic bool finished; /* with exit_status */
  _Atomic int exit_status;
  _Atomic int phase;
  _Atomic bool committed, memory_begun, cont_sent, dest_direct, hooked;
  _Atomic uint64_t stopped_ns;
  struct text token, capabilities, parameters;
  _Atomic pid_t workers[];
};

struct notes *
notes_create (unsigned nr)
{
  size_t size = sizeof (struct notes) + nr * sizeof (_Atomic pid_t);
  struct notes *notes
      = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

  if (notes == MAP_FAILED)
    return NULL;
  notes->size = size;
  return notes;
}

void
notes_free (struct notes *notes)
{
  if (notes != NULL)
    munmap (notes, notes->size);
}

/* ---- writing -------------------------------------------------------------------------------- */

static void
keep_text (struct text *t, const char *text)
{
  if (text[0] != '\0' && !atomic_load (&t->there) && strlen (text) < TEXT_MAX) {
    strcpy (t->text, text);
    atomic_store (&t->there, true);
  }
}

static void
keep_json (struct text *t, const json_t *value)
{
  char *text = value != NULL ? json_dumps (value, JSON_COMPACT) : NULL;

  if (text != NULL)
    keep_text (t, text);
  free (text);
}

void
notes_phase (struct notes *notes, enum phase phase)
{
  if (notes != NULL)
    atomic_store (&notes->phase, (int)phase);
}

void
notes_committed (struct notes *notes, const char *token)
{
  if (notes == NULL)
    return;
  keep_text (&notes->token, token);
  atomic_store (&notes->committed, true);
}

void
notes_memory_begun (struct notes *notes, bool begun)
{
  if (notes != NULL)
    atomic_store (&notes->memory_begun, begun);
}

void
notes_cont_sent (struct notes *notes, bool sent)
{
  if (notes != NULL)
    atomic_store (&notes->cont_sent, sent);
}

void
notes_dest_direct (struct notes *notes, bool direct)
{
  if (notes != NULL)
    atomic_store (&notes->dest_direct, direct);
}

void
notes_stopped (struct notes *notes, uint64_t ns)
{
  if (notes != NULL)
    atomic_store (&notes->stopped_ns, ns);
}

void
notes_settings (struct notes *notes, json_t *capabilities, json_t *parameters)
{
  if (notes == NULL)
    return;
  keep_json (&notes->capabilities, capabilities);
  keep_json (&notes->parameters, parameters);
}

void
notes_worker (struct notes *notes, unsigned i, pid_t pid)
{
  if (notes != NULL)
    atomic_store (&notes->workers[i], pid);
}

void
notes_hooked (struct notes *notes)
{
  if (notes != NULL)
    atomic_store (&notes->hooked, true);
}

void
notes_finished (struct notes *notes, int status)
{
  if (notes == NULL)
    return;
  atomic_store (&notes->exit_status, status);
  atomic_store (&notes->finished, true);
}

/* ---- reading -------------------------------------------------------------------------------- */

void
notes_read (const struct notes *notes, struct known *known)
{
  *known = (struct known){
    .phase = notes_read_phase (notes),
    .committed = atomic_load (&notes->committed),
    .memory_begun = atomic_load (&notes->memory_begun),
    .cont_sent = atomic_load (&notes->cont_sent),
    .dest_direct = atomic_load (&notes->dest_direct),
    .stopped_ns = atomic_load (&notes->stopped_ns),
  };
  if (atomic_load (&notes->token.there))
    snprintf (known->token, sizeof known->token, "%.*s", ROLLBACK_TOKEN_MAX, notes->token.text);
}

enum phase
notes_read_phase (const struct notes *notes)
{
  return (enum phase)atomic_load (&notes->phase);
}

static json_t *
read_json (const struct text *t)
{
  return atomic_load (&t->there) ? json_loads (t->text, 0, NULL) : NULL;
}

json_t *
notes_read_capabilities (const struct notes *notes)
{
  return read_json (&notes->capabilities);
}

json_t *
notes_read_parameters (const struct notes *notes)
{
  return read_json (&notes->parameters);
}

pid_t
notes_read_worker (const struct notes *notes, unsigned i)
{
  return atomic_load (&notes->workers[i]);
}

bool
notes_read_hooked (const struct notes *notes)
{
  return atomic_load (&notes->hooked);
}

bool
notes_read_finished (const struct notes *notes, int *status)
{
  if (!atomic_load (&notes->finished))
    return false;
  *status = atomic_load (&notes->exit_status);
  return true;
}
