#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a destination which goes wrong in the middle, in every way we know of, ends or delays
# a live mirror and an offline copy as documented: the exit status, a message that names the
# destination and what happened, in bounded time; the guest never sees any of it; and where the
# fault passes, all is equal at the end.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
. "$srcdir/tests/blackbox/faults.sh"

# ---- it goes wrong once: a copy ends, resumable (3); a mirror reconnects ----
run_both "closes mid-request" 0 3 'closed|disconnect|EOF|reset|pipe' --fault write:5=close-mid
run_both "closes after a write" 0 3 'closed|disconnect|EOF|reset|pipe' --fault write:5=close-after
run_both "hangs after a write" 0 3 'not answer|no reply' --fault write:5=hang-after
# (ten times the request timeout, where other requests are answered)
[ -z "${NBDMIRROR_LONG:-}" ] ||
  run_both "never answers a write" 0 3 'not answer|no reply' --fault write:5=no-reply
run_both "EIO for a write" 0 3 'Input/output error' --fault write:5=error:EIO
run_both "ENOSPC for a write" 0 3 'No space left' --fault write:5=error:ENOSPC
run_both "EPERM for a write" 0 3 'not permitted' --fault write:5=error:EPERM
run_both "wrong cookie" 0 3 '.' --fault write:5=wrong-cookie
run_both "EIO for a zero request" 0 3 'Input/output error' --fault zero:1=error:EIO \
  --holes-are-not-zero
run_both "closes before the flush's reply" 0 3 'closed|disconnect|EOF|reset' --fault flush:2=close
run_both "does the flush, never says so" 0 3 'not answer|no reply' --fault flush:2=hang
# A flush that is offered and refused shows before anything is written.
run_both "refuses to flush" 7 7 'offers to flush and refuses it' --fault flush:1-=error:EINVAL
run_both "EIO for a flush" 0 3 'Input/output error' --fault flush:2=error:EIO
run_both "applies a write late" 0 3 'closed|disconnect|EOF|reset' --fault write:5=late:0.1
