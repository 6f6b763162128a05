/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the worker publishes with mirror-progress, checked field by field before it is kept: it is
 * shown to every user, and given to the next worker.  Fields that are not known here are kept if
 * they are plain values, so that a newer worker can tell a newer command line more than this filter
 * knows.
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "nbd-plugin/mirror/attachment.h"

#define MAX_FIELDS 64
#define MAX_STRING 4096
#define MAX_BYTES (32 * 1024) /* of JSON: with the filter's own fields it must fit into a line */
#define MAX_NAME 64

enum kind { KIND_COUNT, KIND_NUMBER, KIND_BOOL, KIND_TEXT, KIND_STATE, KIND_POLICY };

static const char *const states[]
    = { "copying", "ready", "holding", "paused", "degraded", "throttled", "synchronous", NULL };
static const char *const policies[] = { "sync", "throttle", "none", "fail", NULL };

static const struct {
  const char *name;
  enum kind kind;
} fields[] = {
  { "state", KIND_STATE },
  { "pass", KIND_COUNT },
  { "sent-bytes", KIND_COUNT },
  { "wire-bytes", KIND_COUNT },
  { "zero-bytes", KIND_COUNT },
  { "skipped-bytes", KIND_COUNT },
  { "sync", KIND_TEXT },
  { "base-digest", KIND_TEXT },
  { "destination-proved", KIND_BOOL },
  { "bandwidth", KIND_NUMBER },
  { "dirty-rate", KIND_NUMBER },
  { "bandwidth-limit", KIND_COUNT },
  { "max-downtime-ms", KIND_NUMBER },
  { "expected-downtime-ms", KIND_NUMBER },
  { "eta-s", KIND_NUMBER },
  { "converging", KIND_BOOL },
  { "synchronised", KIND_BOOL },
  { "reconnects", KIND_COUNT },
  { "degraded-s", KIND_NUMBER },
  { "total-s", KIND_NUMBER },
  { "passes", KIND_COUNT },
  { "error", KIND_TEXT },
  { "target", KIND_TEXT },
  { "policy", KIND_POLICY },
  { "sealed", KIND_BOOL },
  { "return-checkpoint", KIND_TEXT },
  { "unreadable-bytes", KIND_COUNT },
  { "unreadable-offset", KIND_COUNT },
  { "verify", KIND_TEXT },
  { "verified-bytes", KIND_COUNT },
  { "unsettled-bytes", KIND_COUNT },
  { "mismatches", KIND_COUNT },
  { "mismatch-offset", KIND_COUNT },
  { "verify-error", KIND_TEXT },
};

/* Known to the filter alone: a worker must not overwrite them. */
static const char *const reserved[] = { "id",
                                        "size",
                                        "block-size",
                                        "dirty-bytes",
                                        "claimed-bytes",
                                        "quarantine-bytes",
                                        "gate",
                                        "worker",
                                        "session",
                                        "generation",
                                        "downtime-ms",
                                        "rollback-token",
                                        "in-flight",
                                        "waiting",
                                        "worker-pid",
                                        "export",
                                        "reason",
                                        "lease-left-ms",
                                        "version",
                                        "uri",
                                        "direct",
                                        "disk",
                                        "nbdkit-version",
                                        "opened",
                                        "receiving",
                                        "stands-at",
                                        "dirty-limit",
                                        "delayed-writes",
                                        "missed-writes",
                                        "max-write-delay-ms",
                                        "longest-write-delay-ms",
                                        "state-file",
                                        "state-status",
                                        "state-reason",
                                        "state-hot-extents",
                                        "state-hot-limit",
                                        "state-recovery",
                                        "state-recovered-bytes",
                                        "state-over-marked-bytes",
                                        NULL };

static bool
among (const char *s, const char *const *list)
{
  for (; *list != NULL; list++)
    if (strcmp (s, *list) == 0)
      return true;
  return false;
}

static bool
text_ok (const json_t *v)
{
  return json_is_string (v) && json_string_length (v) <= MAX_STRING;
}

static bool
value_ok (enum kind kind, const json_t *v)
{
  switch (kind) {
  case KIND_COUNT:
    return json_is_integer (v) && json_integer_value (v) >= 0;
  case KIND_NUMBER:
    return json_is_number (v) && json_number_value (v) >= 0;
  case KIND_BOOL:
    return json_is_boolean (v);
  case KIND_TEXT:
    return text_ok (v);
  case KIND_STATE:
    return json_is_string (v) && among (json_string_value (v), states);
  case KIND_POLICY:
    return json_is_string (v) && among (json_string_value (v), policies);
  }
  return false;
}

static bool
field_ok (const char *name, const json_t *v)
{
  for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
    if (strcmp (name, fields[i].name) == 0)
      return (json_is_null (v) && fields[i].kind != KIND_STATE) || value_ok (fields[i].kind, v);
  return strlen (name) <= MAX_NAME && !among (name, reserved)
         && (json_is_null (v) || json_is_number (v) || json_is_boolean (v) || text_ok (v));
}

int
attachment_publish (struct attachment *a, json_t *args, char **error)
{
  const char *name;
  json_t *v;

  json_object_foreach (
      args, name,
      v) if (strcmp (name, "id") != 0
             && !field_ok (name, v)) return text_error (error,
                                                        "Parameter '%.64s' has an invalid value",
                                                        name);
  json_t *merged = json_copy (a->published);
  json_object_update (merged, args);
  json_object_del (merged, "id");
  if (json_object_size (merged) > MAX_FIELDS || json_dumpb (merged, NULL, 0, 0) > MAX_BYTES) {
    json_decref (merged);
    return text_error (error, "more is published than can be kept");
  }
  json_decref (a->published);
  a->published = merged;
  return 0;
}
