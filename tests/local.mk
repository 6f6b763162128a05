# By default ThreadSanitizer sleeps for a second at the end of each process.
AM_TESTS_ENVIRONMENT = TSAN_OPTIONS=atexit_sleep_ms=0; export TSAN_OPTIONS;

# All that `make check` builds before it runs the tests.
.PHONY: check-programs
check-programs: all
	$(MAKE) $(AM_MAKEFLAGS) $(check_PROGRAMS)

# They are started in this order: the longest first, so that none of these ends alone.
TESTS += $(guest_tests) $(crash_tests) $(state_tests) $(bench_tests) $(blackbox_tests) \
	$(unit_tests) $(tree_tests)

# ---- the tree itself -------------------------------------------------------------
# How it is written, which names it has, and which folder uses which.

tree_tests = tests/style.sh tests/names.py tests/layers.py
EXTRA_DIST += tests/names.py tests/layers.py tests/style.sh tests/style.py tests/interfaces.py

# ---- unit tests ------------------------------------------------------------------
# Each is one program, tests/unit/test-NAME.c, and can be run alone (--help, --filter).
# They include tests/unit/unit.h instead of criterion's header.

if HAVE_CRITERION
unit_tests = \
	tests/unit/test-base \
	tests/unit/test-region \
	tests/unit/test-bitmap \
	tests/unit/test-claims \
	tests/unit/test-urgent \
	tests/unit/test-samples \
	tests/unit/test-state \
	tests/unit/test-state-job \
	tests/unit/test-state-loss \
	tests/unit/test-rate \
	tests/unit/test-neighbours \
	tests/unit/test-window \
	tests/unit/test-retention \
	tests/unit/test-drop-plan \
	tests/unit/test-latency \
	tests/unit/test-estimate \
	tests/unit/test-converge \
	tests/unit/test-forecast \
	tests/unit/test-decision \
	tests/unit/test-pass \
	tests/unit/test-pack \
	tests/unit/test-level \
	tests/unit/test-backup \
	tests/unit/test-budget \
	tests/unit/test-unreadable \
	tests/unit/test-urgent-queue \
	tests/unit/test-engine \
	tests/unit/test-engine-urgent \
	tests/unit/test-flush-turns \
	tests/unit/test-slots \
	tests/unit/test-supervisor \
	tests/unit/test-identity \
	tests/unit/test-look-again \
	tests/unit/test-units \
	tests/unit/test-container \
	tests/unit/test-migrate-disk \
	tests/unit/test-migrate-plan \
	tests/unit/test-receive-place \
	tests/unit/test-receive-tracked \
	tests/unit/test-seal-disks \
	tests/unit/test-gate \
	tests/unit/test-admission \
	tests/unit/test-hand-over \
	tests/unit/test-digest \
	tests/unit/test-child \
	tests/unit/test-image-extents \
	tests/unit/test-digest-list \
	tests/unit/test-image-log \
	tests/unit/test-ssh \
	tests/unit/test-pace \
	tests/unit/test-progress \
	tests/unit/test-frame \
	tests/unit/test-settings \
	tests/unit/test-control \
	tests/unit/test-control-fds \
	tests/unit/test-control-socket \
	tests/unit/test-control-limits \
	tests/unit/test-control-places \
	tests/unit/test-control-client \
	tests/unit/test-endpoint-file \
	tests/unit/test-endpoint-late \
	tests/unit/test-endpoint-nbd \
	tests/unit/test-endpoint-uri
if !HAVE_TSAN
# These have one thread: ThreadSanitizer would only make them slow.  In its own atomics a SIGBUS
# comes again and again (test-lost-pages).
unit_tests += tests/unit/test-qcow2-digests tests/unit/test-lost-pages \
	tests/unit/test-qcow2-new tests/unit/test-private-dir
endif
if !HAVE_SANITIZERS
# They only compute, for long.
unit_tests += tests/sim/test-converge tests/sim/test-line
endif
check_PROGRAMS += $(unit_tests)
else
TESTS += tests/unit/no-criterion.sh
endif
EXTRA_DIST += tests/unit/no-criterion.sh

# A test is one file, and links what it needs of the libraries, unless said otherwise here.
LDADD = libmirror.la libcontrol.la libdirtybitmap.la libbase.la $(CRITERION_LIBS) $(JANSSON_LIBS)

# The simulator of a job: its tests, and `make tests/sim/table` for people who change the decision.
simulator = tests/sim/sim.c tests/sim/sim.h tests/sim/guest.c tests/sim/guest.h
tests_sim_test_converge_SOURCES = tests/sim/test-converge.c $(simulator)
tests_sim_test_converge_LDADD = $(LDADD) -lm
tests_sim_test_line_SOURCES = tests/sim/test-line.c tests/sim/line.c tests/sim/line.h
tests_sim_test_line_LDADD = $(LDADD) -lm
tests_unit_test_forecast_SOURCES = tests/unit/test-forecast.c $(simulator)
tests_unit_test_forecast_LDADD = $(LDADD) -lm
EXTRA_PROGRAMS = tests/sim/table
tests_sim_table_SOURCES = tests/sim/table.c $(simulator)
tests_sim_table_LDADD = libmirror.la -lm

# What is tested here is in no library.
tests_unit_test_container_SOURCES = tests/unit/test-container.c cmd/container.c
tests_unit_test_units_SOURCES = tests/unit/test-units.c cmd/units.c
tests_unit_test_migrate_disk_SOURCES = tests/unit/test-migrate-disk.c \
	cmd/migrate/disk-option.c cmd/units.c
tests_unit_test_migrate_plan_SOURCES = tests/unit/test-migrate-plan.c cmd/migrate/plan.c
tests_unit_test_receive_place_SOURCES = tests/unit/test-receive-place.c cmd/receive/place.c \
	cmd/help.c cmd/options.c cmd/units.c
tests_unit_test_receive_place_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=getaddrinfo \
	-Wl,--wrap=freeaddrinfo
tests_unit_test_receive_tracked_SOURCES = tests/unit/test-receive-tracked.c \
	cmd/receive/tracked.c cmd/help.c cmd/options.c cmd/units.c
tests_unit_test_progress_SOURCES = tests/unit/test-progress.c \
	cmd/show-progress.c cmd/control-query.c cmd/help.c cmd/options.c cmd/units.c
tests_unit_test_digest_SOURCES = tests/unit/test-digest.c nbd-plugin/digest/extents.c
tests_unit_test_digest_LDADD = libdigest.la $(CRITERION_LIBS)
tests_unit_test_digest_list_LDADD = libdigest.la libbase.la $(CRITERION_LIBS)
tests_unit_test_backup_LDADD = libbackup.la libbase.la $(CRITERION_LIBS) $(JANSSON_LIBS)
tests_unit_test_qcow2_digests_LDADD = libbackup.la libbase.la $(CRITERION_LIBS) $(JANSSON_LIBS)
tests_unit_test_qcow2_new_LDADD = libbackup.la libbase.la $(CRITERION_LIBS) $(JANSSON_LIBS)
tests_unit_test_child_LDADD = libbase.la $(CRITERION_LIBS)
tests_unit_test_private_dir_LDADD = libbase.la $(CRITERION_LIBS)
tests_unit_test_image_extents_SOURCES = tests/unit/test-image-extents.c \
	nbd-plugin/image/extents.c
tests_unit_test_image_extents_LDADD = $(CRITERION_LIBS)
tests_unit_test_image_log_SOURCES = tests/unit/test-image-log.c nbd-plugin/image/log.c
tests_unit_test_image_log_LDADD = $(CRITERION_LIBS)
tests_unit_test_drop_plan_LDADD = libbackup.la $(CRITERION_LIBS)
tests_unit_test_retention_LDADD = libbackup.la $(CRITERION_LIBS)
tests_unit_test_budget_LDADD = libbudget.la libbase.la $(CRITERION_LIBS) -lm
tests_unit_test_pack_CFLAGS = $(AM_CFLAGS) $(ZSTD_CFLAGS)
tests_unit_test_pack_LDADD = $(LDADD) $(ZSTD_LIBS)
tests_unit_test_gate_SOURCES = tests/unit/test-gate.c nbd-plugin/mirror/gate.c

tests_unit_test_hand_over_SOURCES = tests/unit/test-hand-over.c nbd-plugin/receive/admission.c
tests_unit_test_hand_over_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)

control_fixture = tests/unit/control-fixture.h tests/unit/control-fixture.c
tests_unit_test_control_SOURCES = tests/unit/test-control.c $(control_fixture)
tests_unit_test_control_fds_SOURCES = tests/unit/test-control-fds.c $(control_fixture)
tests_unit_test_control_socket_SOURCES = tests/unit/test-control-socket.c $(control_fixture)
tests_unit_test_control_limits_SOURCES = tests/unit/test-control-limits.c $(control_fixture)
tests_unit_test_control_places_SOURCES = tests/unit/test-control-places.c $(control_fixture)
tests_unit_test_control_client_SOURCES = tests/unit/test-control-client.c $(control_fixture)

endpoint_fixture = tests/unit/endpoint-fixture.h tests/unit/endpoint-fixture.c
tests_unit_test_endpoint_file_SOURCES = tests/unit/test-endpoint-file.c $(endpoint_fixture)
tests_unit_test_endpoint_late_SOURCES = tests/unit/test-endpoint-late.c $(endpoint_fixture)
tests_unit_test_endpoint_late_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=nbd_hang_up_end
tests_unit_test_endpoint_nbd_SOURCES = tests/unit/test-endpoint-nbd.c $(endpoint_fixture)
tests_unit_test_identity_SOURCES = tests/unit/test-identity.c $(endpoint_fixture)
tests_unit_test_look_again_SOURCES = tests/unit/test-look-again.c $(endpoint_fixture)
EXTRA_DIST += tests/unit/unit.h tests/unit/fixture.h tests/unit/engine-fixture.h \
	tests/unit/state-fixture.h

# ---- crash states of the state file -------------------------------------------------

check_PROGRAMS += tests/crash/crash tests/crash/checkpoints tests/crash/torn
crash_medium = tests/crash/medium.c tests/crash/medium.h
tests_crash_crash_SOURCES = tests/crash/crash.c $(crash_medium)
tests_crash_crash_LDADD = libdirtybitmap.la libbase.la
tests_crash_checkpoints_SOURCES = tests/crash/checkpoints.c tests/crash/play.c \
	tests/crash/play.h $(crash_medium)
tests_crash_checkpoints_LDADD = libdirtybitmap.la libbase.la
tests_crash_torn_SOURCES = tests/crash/torn.c $(crash_medium)
tests_crash_torn_LDADD = libdirtybitmap.la libbase.la
if !HAVE_TSAN
crash_tests = tests/crash/mutations.sh tests/crash/crash tests/crash/checkpoints tests/crash/torn
endif
EXTRA_DIST += tests/crash/mutations.sh tests/blackbox/newest-backup.py

# A million states, in minutes: CRASH_SEED names other ones.
CRASH_SEED = 1
.PHONY: check-backup
check-backup: all
	BACKUP_KILLS=500 $(srcdir)/tests/blackbox/backup-kill.sh

.PHONY: check-crash
check-crash: tests/crash/crash tests/crash/checkpoints
	tests/crash/crash -n 500000 -s $(CRASH_SEED)
	tests/crash/checkpoints -n 500000 -s $(CRASH_SEED)

# ---- bytes that nobody wrote ---------------------------------------------------------
# state.sh runs the inputs that are kept, and then libFuzzer, if clang is there.

check_PROGRAMS += tests/fuzz/state-replay
tests_fuzz_state_replay_SOURCES = tests/fuzz/replay.c tests/fuzz/state.c tests/fuzz/state.h \
	tests/fuzz/state-file.c cmd/state.c cmd/options.c cmd/help.c cmd/units.c
tests_fuzz_state_replay_LDADD = libdirtybitmap.la libbase.la $(JANSSON_LIBS)
state_tests = tests/fuzz/state.sh tests/model.sh
EXTRA_DIST += tests/model.sh tests/fuzz/state.sh tests/fuzz/state-corpus

# ---- black-box tests --------------------------------------------------------------
# In a build with sanitizers lib.sh makes some helpers once.
clean-local:
	-rm -rf tests/sanitizer-helpers

# Each is one script, tests/blackbox/NAME.sh; 77 means skipped.

linked_blackbox_tests = \
	tests/blackbox/smoke.sh \
	tests/blackbox/copy.sh \
	tests/blackbox/monitors.sh \
	tests/blackbox/compress.sh \
	tests/blackbox/sparse.sh \
	tests/blackbox/filter-protocol.py \
	tests/blackbox/filter-pace.py \
	tests/blackbox/filter-messages.sh \
	tests/blackbox/digest-filter.sh \
	tests/blackbox/verify-digests.sh \
	tests/blackbox/handoff-many.sh \
	tests/blackbox/live-mirror.sh \
	tests/blackbox/odd-sizes.sh tests/blackbox/odd-names.sh \
	tests/blackbox/no-direct.sh \
	tests/blackbox/odd-destinations.sh \
	tests/blackbox/dest-refused.sh \
	tests/blackbox/dest-faults.sh \
	tests/blackbox/formats.sh \
	tests/blackbox/image-killed.sh \
	tests/blackbox/image-lent.sh \
	tests/blackbox/difference-copy.sh \
	tests/blackbox/difference-digests.sh \
	tests/blackbox/serve.sh \
	tests/blackbox/fence.sh tests/blackbox/fence-state.sh \
	tests/blackbox/evacuate-disk.sh \
	tests/blackbox/receive-sessions.sh \
	tests/blackbox/receive-disk.sh \
	tests/blackbox/receive-mirror.sh \
	tests/blackbox/receive-seal.sh \
	tests/blackbox/receive-ssh.sh \
	tests/blackbox/rekey.sh \
	tests/blackbox/receive-tls.sh
# These are about code of our own only, which is the same with every nbdkit, libnbd and QEMU.
own_tests = \
	tests/blackbox/long-line.sh \
	tests/blackbox/other-server.sh \
	tests/blackbox/busy-server.sh \
	tests/blackbox/converge.sh \
	tests/blackbox/counted-passes.sh \
	tests/blackbox/early-kill.sh \
	tests/blackbox/evacuate-format.sh \
	tests/blackbox/hostile-uris.sh \
	tests/blackbox/image-slow.sh \
	tests/blackbox/kill-holding.sh \
	tests/blackbox/kill-worker.sh \
	tests/blackbox/quarantine-busy.sh \
	tests/blackbox/server-killed.sh \
	tests/blackbox/source-errors.sh \
	tests/blackbox/stop-worker.sh \
	tests/blackbox/valgrind.sh \
	tests/blackbox/unanswered.sh \
	tests/blackbox/synchronous.sh \
	tests/blackbox/synchronous-faults.sh \
	tests/blackbox/thin.sh \
	tests/blackbox/at-rest.sh \
	tests/blackbox/slow-flush.sh \
	tests/blackbox/cli-usage.sh \
	tests/blackbox/cli-manual.sh \
	tests/blackbox/budget.sh \
	tests/blackbox/bypass.sh \
	tests/blackbox/left-record.sh \
	tests/blackbox/back-again.sh \
	tests/blackbox/backup.sh \
	tests/blackbox/backup-cases.sh \
	tests/blackbox/backup-compare.sh \
	tests/blackbox/backup-digests.sh \
	tests/blackbox/backup-faults.sh \
	tests/blackbox/backup-kill.sh \
	tests/blackbox/backup-manual.sh \
	tests/blackbox/backup-options.sh \
	tests/blackbox/backup-order.sh \
	tests/blackbox/backup-vanish.sh \
	tests/blackbox/base-proof.sh \
	tests/blackbox/base-proof-slow.sh \
	tests/blackbox/backup-drill.sh \
	tests/blackbox/growth.sh \
	tests/blackbox/guest-agent.sh \
	tests/blackbox/repository-careless.sh \
	tests/blackbox/prune-killed.sh \
	tests/blackbox/repository-full.sh \
	tests/blackbox/repository-hostile.sh \
	tests/blackbox/repository-ssh.sh \
	tests/blackbox/repository.sh \
	tests/blackbox/top-live.sh \
	tests/blackbox/top-proof.sh \
	tests/blackbox/handoff-coordinator.sh \
	tests/blackbox/handoff-phases.sh \
	tests/blackbox/migrate.sh \
	tests/blackbox/migrate-killed.sh tests/blackbox/migrate-proof.sh \
	tests/blackbox/qmp-proof.sh \
	tests/blackbox/limits.sh \
	tests/blackbox/live-verify.sh \
	tests/blackbox/dry-run.sh \
	tests/blackbox/settle.sh \
	tests/blackbox/kill-destination.sh \
	tests/blackbox/difference-live.sh \
	tests/blackbox/dest-lasting.sh \
	tests/blackbox/old-worker.sh \
	tests/blackbox/checkpoint-verify.sh \
	tests/blackbox/checkpoints.sh tests/blackbox/checkpoint-busy.sh \
	tests/blackbox/incremental.sh tests/blackbox/samples.sh \
	tests/blackbox/return.sh tests/blackbox/return-killed.sh tests/blackbox/return-slow.sh \
	tests/blackbox/stands-at.sh tests/blackbox/no-attributes.sh \
	tests/blackbox/state-alone.sh \
	tests/blackbox/state-file.sh \
	tests/blackbox/state-loss.sh \
	tests/blackbox/state-shrunk.sh \
	tests/blackbox/state-size.sh \
	tests/blackbox/state-slow.sh \
	tests/blackbox/state-unflushed.sh \
	tests/blackbox/state-command.sh \
	tests/blackbox/job-commands.sh \
	tests/blackbox/in-doubt.sh
blackbox_tests = $(linked_blackbox_tests) $(own_tests)

# The scripts, and all that they use.  What running them leaves in these folders is not for others.
EXTRA_DIST += tests/blackbox tests/other-debian.sh
dist-hook:
	find $(distdir)/tests \( -name '*.log' -o -name '*.trs' -o -name '__pycache__' \) \
	  -exec rm -rf {} +

# ---- guests -----------------------------------------------------------------------
# Virtual machines that are moved while they write; 77 without QEMU, or where Debian's kernel is not
# to be had.  Not with sanitizers.

linked_guest_tests = \
	tests/guest/libvirt.py \
	tests/guest/migrate.py \
	tests/guest/qcow2-back.py \
	tests/guest/qmp-migrate.py \
	tests/guest/two-hosts-tls.py
# These meet nothing of another QEMU or nbdkit that those above do not meet.
own_guest_tests = \
	tests/guest/backup.py \
	tests/guest/shared-base.py \
	tests/guest/qcow2-running.py \
	tests/guest/adopt-starts.py \
	tests/guest/adopt.py \
	tests/guest/adopted-move.py \
	tests/guest/by-hand.py \
	tests/guest/evacuate.py \
	tests/guest/faults.py \
	tests/guest/manuals.py \
	tests/guest/qcow2-lent.py \
	tests/guest/qcow2-served.py \
	tests/guest/qmp-jobs.py \
	tests/guest/qmp-kills.py \
	tests/guest/qmp-recover.py \
	tests/guest/raw-node-back.py \
	tests/guest/there-and-back.py \
	tests/guest/two-hosts.py
guest_tests = $(linked_guest_tests) $(own_guest_tests)
EXTRA_DIST += tests/guest

# What depends on the nbdkit, libnbd and QEMU of this machine.
linked_tests = $(linked_guest_tests) $(linked_blackbox_tests)
linked_programs = bench/relay
if HAVE_CRITERION
linked_programs += tests/unit/test-endpoint-nbd tests/unit/test-endpoint-uri
linked_tests += tests/unit/test-endpoint-nbd tests/unit/test-endpoint-uri
endif
.PHONY: check-linked check-linked-all
check-linked: all $(linked_programs)
	$(MAKE) $(AM_MAKEFLAGS) check-TESTS TESTS='$(linked_tests)'
check-linked-all: all
	$(MAKE) $(AM_MAKEFLAGS) check TESTS='$(guest_tests) $(blackbox_tests)'

# Faults and instants at random: FAULT_RUNS (200) of them, about 10 s each.
.PHONY: check-guest
check-guest:
	NBDMIRROR_LONG=1 $(MAKE) $(AM_MAKEFLAGS) check TESTS='$(guest_tests)'
	@grep -h ' runs, ' tests/guest/faults.py.log

# A guest that is put onto the tracked path and taken off it 1,000 times: an hour and more.
.PHONY: adopt-cycles
adopt-cycles: all
	CYCLES=1000 NBDMIRROR_LONG=1 $(MAKE) $(AM_MAKEFLAGS) check TESTS=tests/guest/adopt.py
	@grep ' moves: ' tests/guest/adopt.py.log

# Each way to send only the difference, to each kind of destination.
.PHONY: difference-matrix
difference-matrix: all
	DIFFERENCE_MATRIX=1 $(MAKE) $(AM_MAKEFLAGS) check TESTS=tests/blackbox/difference-live.sh
	@grep 'MiB sent' tests/blackbox/difference-live.sh.log

# The same with more rounds and larger disks.
.PHONY: check-long
check-long:
	NBDMIRROR_LONG=1 $(MAKE) $(AM_MAKEFLAGS) check
