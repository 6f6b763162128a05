/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What clients of the control socket are told about the job.  Nothing is changed here.  The JSON
 * values that are returned are owned by the caller.  Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_STATUS_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_STATUS_H

#include <jansson.h>

#include "nbd-plugin/mirror/gate.h"
#include "nbd-plugin/mirror/pace.h"

struct mirror;

/* These three return constants, which may be kept and compared. */
const char *mirror_gate_name (const struct gate_view *gate, enum pace_mode pace);
const char *mirror_state (struct mirror *m);
const char *mirror_job_status (struct mirror *m); /* the state in QMP's words */

json_t *mirror_status (struct mirror *m);          /* query-mirror */
json_t *mirror_block_jobs (struct mirror *m);      /* query-block-jobs */
json_t *mirror_jobs (struct mirror *m);            /* query-jobs */
json_t *mirror_block_job_event (struct mirror *m); /* the data of BLOCK_JOB_... */

#endif
