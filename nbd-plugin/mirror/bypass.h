/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Somebody writes to the disk without passing this server: what was tracked is not to be believed,
 * and no job may begin.  `nbdmirror adopt` and `give-back` say so (mirror-bypass).
 *
 * It has to outlive the server, because the writes do.  So it is a file beside the control socket,
 * CONTROL.bypass, which holds the id of this boot: after another boot the writer is gone, but what
 * it wrote was not tracked.  A file that cannot be read counts as one of this boot.
 *
 * Used by one thread (main thread before the fork, then the control thread); any may read `on`.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_BYPASS_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_BYPASS_H

#include <stdatomic.h>
#include <stdbool.h>

/* The refusal, for the path of the file. */
#define BYPASSED                                                                                   \
  "a guest writes to this disk without passing this server, since 'nbdmirror give-back' or an "    \
  "'adopt' that has not ended.  Run 'adopt' to its end; or, if no guest uses the image by itself " \
  "any more, end this server, remove %s and start it again"

struct bypass {
  char *path;      /* owned */
  _Atomic bool on; /* somebody does */
  bool was;        /* somebody does, or did in an earlier boot */
};

/* Look what is there for the control socket CONTROL. */
void bypass_open (struct bypass *b, const char *control);
void bypass_close (struct bypass *b); /* leaves the file alone */

/* 0, and it is durable; or -1 with *ERROR (text_free()), and `on` is what it was. */
int bypass_set (struct bypass *b, bool on, char **error);

#endif
