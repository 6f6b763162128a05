/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves of nbd-plugin/receive/hand-over.c: the checkpoint of a hand-over has the identity that the
 * last session has told, and none if another session came after that; a guest's mutation waits
 * until the mirror filter records, and if it does not wait to the end, the recording is not used.
 */

#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "tests/unit/unit.h"

/* Time flies. */
static uint64_t now_ms;
#define clock_ms() now_ms
#include "nbd-plugin/receive/hand-over.c"
#undef clock_ms

void
nbdkit_error (const char *fmt, ...)
{
  (void)fmt;
}

static struct take_over_page page;
static struct admission admission;
static struct hand_over hand_over;
static const char one[] = "11111111-2222-4333-8444-555555555555";
static const char zero[] = "00000000-0000-0000-0000-000000000000";

static int
no_pause (void *opaque)
{
  (void)opaque;
  now_ms += 1000;
  return 0;
}

/* What the mirror filter does at the same time. */
static int
records_meanwhile (void *opaque)
{
  (void)opaque;
  take_over_change (&page, TAKE_OVER_ASKED, TAKE_OVER_DONE);
  return 0;
}

static int
client_has_gone (void *opaque)
{
  (void)opaque;
  return ESHUTDOWN;
}

static void
begin (void)
{
  memset (&page, 0, sizeof page);
  page.wake_fd = fd_wake_new ();
  page.records = 1;
  admission_init (&admission);
  hand_over_init (&hand_over);
  hand_over.page = &page;
}

static void
end (void)
{
  close (page.wake_fd);
  hand_over_destroy (&hand_over);
  admission_destroy (&admission);
}

static void
session (const char *id)
{
  uint64_t generation;

  cr_assert_eq (admission_join (&admission, id, NULL, &generation, no_pause, NULL), 0);
}

/* The disk is sealed: the page has this identity then. */
static void
sealed_with (const char *uuid)
{
  char text[UUID_TEXT_BYTES];

  cr_assert (admission_seal (&admission));
  hand_over_begin (&hand_over, &admission);
  cr_assert_eq (atomic_load (&page.state), TAKE_OVER_ASKED);
  uuid_text (page.uuid, text);
  cr_assert_str_eq (text, uuid);
}

Test (hand_over, the_last_session_has_told_it)
{
  begin ();
  session ("a");
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "b", one), ESHUTDOWN);
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "a", "x"), EINVAL);
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "a", one), 0);
  session ("a"); /* another connection of it */
  sealed_with (one);
  end ();
}

Test (hand_over, another_session_came_after_it)
{
  begin ();
  session ("a");
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "a", one), 0);
  session ("b");
  sealed_with (zero);
  end ();
}

Test (hand_over, nobody_tells_it_after_the_seal)
{
  begin ();
  session ("a");
  sealed_with (zero);
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "a", one), ESHUTDOWN);
  end ();
}

Test (hand_over, without_a_state_file)
{
  begin ();
  page.records = 0;
  session ("a");
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "a", one), ENOTSUP);
  hand_over.page = NULL;
  cr_assert_eq (hand_over_tell (&hand_over, &admission, "a", one), ENOTSUP);
  cr_assert_eq (hand_over_guest_mutates (&hand_over, &admission, no_pause, NULL), 0);
  end ();
}

Test (hand_over, a_guest_waits)
{
  begin ();
  /* Who has sealed is slow: the guest asks itself. */
  cr_assert (admission_seal (&admission));
  cr_assert_eq (hand_over_guest_mutates (&hand_over, &admission, client_has_gone, NULL), ESHUTDOWN);
  cr_assert_eq (atomic_load (&page.state), TAKE_OVER_ASKED);
  cr_assert_eq (hand_over_guest_mutates (&hand_over, &admission, records_meanwhile, NULL), 0);
  cr_assert_eq (atomic_load (&page.state), TAKE_OVER_DONE);
  end ();
}

Test (hand_over, a_guest_does_not_wait_for_ever)
{
  begin ();
  cr_assert (admission_seal (&admission));
  cr_assert_eq (hand_over_guest_mutates (&hand_over, &admission, no_pause, NULL), 0);
  cr_assert_eq (atomic_load (&page.state), TAKE_OVER_MISSED);
  /* The mirror filter, which comes too late, finds that out. */
  cr_assert_not (take_over_change (&page, TAKE_OVER_ASKED, TAKE_OVER_DONE));
  end ();
}
