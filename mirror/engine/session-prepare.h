/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What comes before a session copies: look at the destination, connect as often as both sides
 * allow, and prove that it is the one that this bitmap was counting against (rule R13).
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SESSION_PREPARE_H
#define NBDMIRROR_MIRROR_ENGINE_SESSION_PREPARE_H

#include "mirror/engine/session.h"

/* S has its endpoint, which is open: make its copiers, with their channels.  What a slow server
 * admits is remembered in *O.  Blocks, bounded by the time limits of the channels.  NULL, or why
 * not, with *PROBLEM (base/text.h, the caller frees it); session_end() puts away what there is. */
char *session_prepare (struct session *s, struct session_options *o, enum session_problem *problem);

#endif
