/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup --dry-run: how many bytes each disk would copy, and how long that would take.
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"
#include "cmd/units.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/endpoint.h"

#define ASK_BYTES (UINT64_C (1) << 30) /* in one question */

/* What of CH, of SIZE bytes, is not known to be zero; -1: it cannot be told. */
static int64_t
count_data (struct channel *ch, uint64_t size)
{
  int64_t data = 0;
  struct endpoint_extent x;

  for (uint64_t at = 0; at < size; at += x.length) {
    uint64_t len = size - at < ASK_BYTES ? size - at : ASK_BYTES;
    if (backup_signal != 0 || sync_status (ch, len, at, &x) != 0)
      return -1;
    data += x.zero ? 0 : (int64_t)x.length;
  }
  return data;
}

static int64_t
data_of (const struct backup_disk *d)
{
  CLEANUP_TEXT char *error = NULL;
  const struct endpoint_options opts = { .writable = false };
  json_t *status = NULL;
  struct endpoint *ep = NULL;
  struct channel *ch = NULL;
  int64_t data = -1;

  if (query_call (d->client, d->control, "query-mirror", NULL, &status, NULL) == -1)
    return -1;
  char *uri = (char *)status_text (status, "uri");
  if (uri != NULL && (ep = endpoint_open (&uri, 1, &opts, NULL, &error)) != NULL
      && endpoint_info (ep)->size == d->size && (ch = channel_open (ep, NULL, &error)) != NULL)
    data = count_data (ch, d->size);
  if (ch != NULL)
    channel_close (ch);
  if (ep != NULL)
    endpoint_close (ep);
  json_decref (status);
  return data;
}

/* How fast a backup in LIST was as a whole, in bytes a second; 0: it copied nothing. */
static double
speed_of (const struct manifest *m)
{
  double bytes = 0, us = (double)(m->ended_us - m->begun_us);

  for (unsigned i = 0; i < m->nr_disks; i++)
    bytes += m->disks[i].file != NULL ? (double)m->disks[i].copied_bytes : 0;
  return us > 0 ? bytes / us * 1e6 : 0;
}

void
backup_forecast (struct backup_run *run, const struct backup_list *list)
{
  double speed = 0, all = 0, limited = 0;
  uint64_t limit = 0;
  bool known = true;

  if (run->bandwidth != NULL)
    units_parse_rate (run->bandwidth, &limit); /* its syntax was looked at */
  for (unsigned i = 0; i < list->nr; i++) {
    double one = speed_of (&list->list[i].manifest);
    speed = one > speed ? one : speed;
  }
  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    if (d->error != NULL)
      continue;
    if (d->full)
      d->changed = data_of (d);
    known &= d->changed >= 0;
    all += (double)d->changed;
    if (limit > 0 && (double)d->changed / (double)limit > limited)
      limited = (double)d->changed / (double)limit; /* the limit is that of each disk */
  }
  double free_s = speed > 0 ? all / speed : 0;
  run->forecast_s = !known || (speed == 0 && limit == 0) ? -1 : free_s > limited ? free_s : limited;
}
