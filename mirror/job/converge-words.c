/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence decision in words, for the user.  See converge.h.
 */

#include "config.h"

#include <stdio.h>

#include "mirror/job/converge.h"

const char *
converge_reason_text (enum converge_reason r)
{
  switch (r) {
  case CONVERGE_PASS:
    return "a pass did not halve what was left";
  case CONVERGE_RATE:
    return "the guest changes blocks too fast for passes to halve what is left";
  case CONVERGE_GUARD:
    return "too many passes, or too much sent";
  case CONVERGE_USELESS:
    return "throttling does not slow the guest enough";
  case CONVERGE_CALM:
    return "the guest is calm";
  case CONVERGE_TRIAL:
    return "the guest changes little, and may want no more";
  case CONVERGE_FAR:
    return "the guest changes blocks too fast, and the destination answers too late for its writes "
           "to wait for it";
  case CONVERGE_NO_REASON:
    break;
  }
  return "by request";
}

const char *
converge_action (const struct converge *c, enum job_policy policy, double max_delay_ms, char *buf,
                 size_t size)
{
  bool no = c->verdict == CONVERGING_NO;

  if (c->gate == CONVERGE_THROTTLED)
    snprintf (buf, size,
              "the guest may change %.1f MiB/s for now, each write waits for at most %.0f ms",
              (double)c->dirty_limit / 1048576, max_delay_ms);
  else if (c->gate == CONVERGE_SYNCHRONOUS)
    snprintf (buf, size,
              "guest writes wait for the destination for now, for at most %.0f ms each%s",
              max_delay_ms, no ? "; it is not enough" : "");
  else if (!no)
    snprintf (buf, size, "nothing is needed");
  else if (policy == POLICY_SYNC && !c->far)
    snprintf (buf, size,
              "guest writes are going to wait for the destination, for at most %.0f ms each",
              max_delay_ms);
  else if (policy == POLICY_THROTTLE || policy == POLICY_SYNC)
    snprintf (buf, size, "guest writes are going to be slowed down, by at most %.0f ms each",
              max_delay_ms);
  else if (policy == POLICY_FAIL)
    snprintf (buf, size, "the job is going to end with exit status 4");
  else
    snprintf (buf, size, "it keeps trying");
  return buf;
}
