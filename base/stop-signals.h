/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The signals by which somebody asks this program to end: SIGINT, SIGTERM, and SIGHUP when the
 * terminal goes away, unless that is ignored, which is what nohup says.
 */

#ifndef NBDMIRROR_BASE_STOP_SIGNALS_H
#define NBDMIRROR_BASE_STOP_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

/* SET becomes these. */
void stop_signals (sigset_t *set);

/* HANDLER is called for each of them. */
void stop_signals_catch (void (*handler) (int));

/* Is one of them pending, so that it waits until it is not blocked any more? */
bool stop_signals_pending (void);

#endif
