/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that what --disk of `nbdmirror migrate` says is read exactly, with commas in names, and
 * that what is not meant is refused with a reason.
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "cmd/migrate/disk-option.h"
#include "tests/unit/unit.h"

static bool
same (const char *a, const char *b)
{
  return a == NULL || b == NULL ? a == b : strcmp (a, b) == 0;
}

struct want {
  const char *control, *dest, *base, *base_format;
  enum engine_sync mode;
  bool have_sync, trust_base, verify;
};

static void
is_read (const char *text, const struct want *want)
{
  struct disk_option d;
  char *why = disk_option_parse (text, &d);

  cr_assert (why == NULL, "'%s' was refused: %s", text, why);
  cr_expect (same (d.control, want->control), "'%s': CONTROL is '%s'", text, d.control);
  cr_expect (same (d.dest, want->dest), "'%s': DEST is '%s'", text, d.dest);
  cr_expect (same (d.base, want->base) && d.sync.base == d.base, "'%s': base", text);
  cr_expect (same (d.base_format, want->base_format) && d.sync.base_format == d.base_format,
             "'%s': base-format", text);
  cr_expect (d.sync.mode == want->mode && d.have_sync == want->have_sync, "'%s': sync", text);
  cr_expect (d.sync.trust_base == want->trust_base, "'%s': trust-base", text);
  cr_expect (d.verify == want->verify, "'%s': verify", text);
  disk_option_free (&d);
}

#define IS_READ(text, ...) is_read (text, &(struct want){ __VA_ARGS__ })

static void
is_refused (const char *text, const char *reason)
{
  struct disk_option d;
  char *why = disk_option_parse (text, &d);

  cr_assert (why != NULL, "'%s' was read", text);
  cr_expect (strstr (why, reason) != NULL, "'%s': %s", text, why);
  text_free (why);
  disk_option_free (&d);
}

Test (migrate_disk, places)
{
  IS_READ ("a=b", .control = "a", .dest = "b");
  IS_READ ("/run/a.control=nbd+unix:///mirror?socket=/x", .control = "/run/a.control",
           .dest = "nbd+unix:///mirror?socket=/x");
  IS_READ ("a,,b=c,,,,d", .control = "a,b", .dest = "c,,d");
  IS_READ ("a=b,,", .control = "a", .dest = "b,");
  IS_READ ("a=,,b,,,verify=on", .control = "a", .dest = ",b,", .verify = true);
}

Test (migrate_disk, parts)
{
  IS_READ ("a=b,sync=full", .control = "a", .dest = "b", .have_sync = true);
  IS_READ ("a=b,sync=compare,verify=on", .control = "a", .dest = "b", .have_sync = true,
           .mode = ENGINE_SYNC_COMPARE, .verify = true);
  IS_READ ("a=b,verify=off,trust-base=on,sync=top", .control = "a", .dest = "b", .have_sync = true,
           .mode = ENGINE_SYNC_TOP, .trust_base = true);
  IS_READ ("a=b,sync=top", .control = "a", .dest = "b", .have_sync = true, .mode = ENGINE_SYNC_TOP);
  IS_READ ("a=b,base=/x=1,,2,base-format=qcow2,sync=base,trust-base=off", .control = "a",
           .dest = "b", .have_sync = true, .mode = ENGINE_SYNC_BASE, .base = "/x=1,2",
           .base_format = "qcow2");
}

Test (migrate_disk, refused)
{
  is_refused ("", "CONTROL=DEST");
  is_refused ("a", "CONTROL=DEST");
  is_refused ("=b", "CONTROL=DEST");
  is_refused ("a=", "CONTROL=DEST");
  is_refused (",a=b", "CONTROL=DEST");
  is_refused ("a=b,", "'' is not NAME=VALUE");
  is_refused ("a=b,,,", "'' is not NAME=VALUE");
  is_refused ("a=b,sync", "'sync' is not NAME=VALUE");
  is_refused ("a=b,sync=", "'sync=' is not NAME=VALUE");
  is_refused ("a=b,=sync", "'=sync' is not NAME=VALUE");
  is_refused ("a=b,sync=ful", "sync=ful: must be");
  is_refused ("a=b,Sync=full", "'Sync' is unknown");
  is_refused ("a=b,syn=full", "'syn' is unknown");
  is_refused ("a=b,verify=on,verify=on", "verify is given twice");
  is_refused ("a=b,discard=maybe", "discard=maybe: must be one of ignore|unmap");
  is_refused ("a=b,aio=some", "aio=some: must be one of threads|native|io_uring");
  is_refused ("a=b,verify=2", "verify=2: ");
  is_refused ("a=b,trust-base=perhaps", "trust-base=perhaps: ");
}

/* Whatever `mirror` refuses, for the same reason. */
Test (migrate_disk, together)
{
  static const char *const parts[][2] = { { "sync=base", "--sync base needs" },
                                          { "base=x", "--base goes with" },
                                          { "sync=compare,base=x", "--base goes with" },
                                          { "base-format=raw", "--base-format goes with" } };

  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    char *text = text_printf ("a=b,%s", parts[i][0]);
    is_refused (text, parts[i][1]);
    text_free (text);
  }
}
