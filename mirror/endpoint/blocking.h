/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Blocking requests on a channel, for the moments when nothing else is going on there: before the
 * copiers start, and in verify.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_BLOCKING_H
#define NBDMIRROR_MIRROR_ENDPOINT_BLOCKING_H

#include <stdint.h>

#include "mirror/endpoint/endpoint.h"

/* Read LEN bytes and wait (at most the channel's request timeout). BUF as for channel_read().
 * 0, or a positive errno. */
int sync_read (struct channel *ch, void *buf, uint32_t len, uint64_t offset);

/* Ask for the status of LEN bytes and wait in the same way.  *FIRST is the first extent, which may
 * be shorter than LEN.  0, or a positive errno. */
int sync_status (struct channel *ch, uint64_t len, uint64_t offset, struct endpoint_extent *first);

/* Wait until *OUTSTANDING, which the completions of CH's requests count down, is 0.  0, or a
 * positive errno if the channel died and left some unanswered. */
int sync_drain (struct channel *ch, const unsigned *outstanding);

/* Wait until CH takes one more request.  *OUTSTANDING counts all that it has.  As sync_drain(). */
int sync_room (struct channel *ch, const unsigned *outstanding);

#endif
