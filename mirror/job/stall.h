/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * For how long has a job been getting nowhere?  A limit on that suits a large disk as well as a
 * small one, which a limit on the whole time does not.  Plain values in, plain values out.
 */

#ifndef NBDMIRROR_MIRROR_JOB_STALL_H
#define NBDMIRROR_MIRROR_JOB_STALL_H

#include <stdbool.h>
#include <stdint.h>

/* Zero at first. */
struct stall {
  uint64_t moved, since_ns;
};

/* MOVED bytes were dealt with so far, and DUE says whether there is more to do.  Returns for how
 * long (ns) nothing has moved though something was to do, 0 if something does. */
uint64_t stall_look (struct stall *s, uint64_t moved, bool due, uint64_t now_ns);

/* The time LIMIT_NS that a user gives to a job, lengthened to what the next requests of
 * REQUEST_BYTES may take under a limit of RATE bytes a second (0: none). */
uint64_t stall_limit_ns (uint64_t limit_ns, uint64_t request_bytes, uint64_t rate);

#endif
