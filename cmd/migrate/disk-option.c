/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See disk-option.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/migrate/disk-option.h"
#include "cmd/units.h"

static const struct cmd_option parts[] = { DISK_OPTION_PARTS, CMD_OPTIONS_END };

/* The text up to the next comma that stands alone; *TEXT goes on behind that, or is NULL at the
 * end.  The caller frees it. */
static char *
next_piece (const char **text)
{
  const char *from = *text;
  char *piece = malloc (strlen (from) + 1), *to = piece;

  if (piece == NULL) {
    *text = NULL;
    return text_copy ("");
  }
  while (*from != '\0' && (from[0] != ',' || from[1] == ',')) {
    from += *from == ',' ? 1 : 0;
    *to++ = *from++;
  }
  *to = '\0';
  *text = *from == ',' ? from + 1 : NULL;
  return piece;
}

static int
find_part (const char *name)
{
  for (const struct cmd_option *o = parts; o->name != NULL; o++)
    if (strcmp (o->name + 1, name) == 0) /* behind its comma */
      return o->key;
  return DISK_OPTION_END;
}

static char *
take_switch (const char *name, const char *value, bool *to)
{
  int on;
  const char *why = units_parse_switch (value, &on);

  if (why != NULL)
    return text_printf ("%s=%s: %s", name, value, why);
  *to = on != 0;
  return NULL;
}

static void
keep (char **where, const char *value)
{
  text_free (*where);
  *where = text_copy (value);
}

/* WORDS are separated by bars. */
static char *
take_word (const char *name, const char *value, const char *words, char **to)
{
  if (!units_is_word (value, words))
    return text_printf ("%s=%s: must be one of %s", name, value, words);
  keep (to, value);
  return NULL;
}

static char *
take_part (struct disk_option *d, int part, const char *name, const char *value)
{
  switch (part) {
  case DISK_OPTION_SYNC:
    d->have_sync = true;
    return sync_take (value, &d->sync)
               ? NULL
               : text_printf ("sync=%s: must be full, top, base, compare, incremental or auto",
                              value);
  case DISK_OPTION_BASE:
    keep (&d->base, value);
    d->sync.base = d->base;
    return NULL;
  case DISK_OPTION_BASE_FORMAT:
    keep (&d->base_format, value);
    d->sync.base_format = d->base_format;
    return NULL;
  case DISK_OPTION_TRUST_BASE:
    return take_switch (name, value, &d->sync.trust_base);
  case DISK_OPTION_VERIFY:
    return take_switch (name, value, &d->verify);
  case DISK_OPTION_IMAGE:
    keep (&d->image, value);
    return NULL;
  case DISK_OPTION_DISCARD:
    return take_word (name, value, "ignore|unmap", &d->discard);
  case DISK_OPTION_AIO:
    return take_word (name, value, "threads|native|io_uring", &d->aio);
  default:
    return text_printf (
        "'%s' is unknown here; use sync, base, base-format, trust-base, verify, image,"
        " discard or aio (write a comma that belongs to a name twice)",
        name);
  }
}

/* NAME=VALUE; PIECE is cut in two.  SEEN: a bit for each part that was given before. */
static char *
parse_part (struct disk_option *d, char *piece, unsigned *seen)
{
  char *equals = strchr (piece, '=');

  if (equals == NULL || equals == piece || equals[1] == '\0')
    return text_printf ("'%s' is not NAME=VALUE (write a comma that belongs to a name twice)",
                        piece);
  *equals = '\0';
  int part = find_part (piece);
  unsigned bit = part == DISK_OPTION_END ? 0 : 1u << (part - DISK_OPTION_SYNC);
  if ((*seen & bit) != 0)
    return text_printf ("%s is given twice", piece);
  *seen |= bit;
  return take_part (d, part, piece, equals + 1);
}

static char *
parse_place (struct disk_option *d, char *piece)
{
  char *equals = strchr (piece, '=');

  if (equals == NULL || equals == piece || equals[1] == '\0')
    return text_copy ("must begin with CONTROL=DEST");
  *equals = '\0';
  d->control = text_copy (piece);
  d->dest = text_copy (equals + 1);
  return NULL;
}

char *
disk_option_parse (const char *text, struct disk_option *d)
{
  unsigned seen = 0;

  *d = (struct disk_option){ .have_sync = false };
  char *piece = next_piece (&text);
  char *why = parse_place (d, piece);
  text_free (piece);
  while (why == NULL && text != NULL) {
    piece = next_piece (&text);
    why = parse_part (d, piece, &seen);
    text_free (piece);
  }
  if (why != NULL)
    return why;
  /* Whether the image itself names the base that --sync top needs, its worker finds out. */
  bool base_may_be_known = d->sync.mode == ENGINE_SYNC_TOP && d->base_format == NULL;
  const char *fault = base_may_be_known ? NULL : sync_fault (&d->sync);
  return fault != NULL ? text_copy (fault) : NULL;
}

void
disk_option_free (struct disk_option *d)
{
  text_free (d->control);
  text_free (d->dest);
  text_free (d->base);
  text_free (d->base_format);
  text_free (d->name);
  text_free (d->image);
  text_free (d->discard);
  text_free (d->aio);
}
