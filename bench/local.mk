# Benchmarks are run by hand: bench/run, or make bench.  make check only proves that they run.

EXTRA_DIST += bench/README.md bench/run bench/adopt.py bench/common.py bench/idle.py \
	bench/overhead.py \
	bench/large.py bench/load.py bench/load_guest.py bench/load_plot.py bench/load_systems.py \
	bench/qmp.py bench/handoff.py bench/many.py bench/difference.py \
	bench/difference_systems.py bench/line.py bench/incremental.py bench/state.py \
	bench/slow-sync.c bench/backup.py bench/backup_systems.py bench/pull.py

.PHONY: bench
bench: all
	$(srcdir)/bench/run idle
	$(srcdir)/bench/run overhead
	$(srcdir)/bench/run large
	$(srcdir)/bench/run load
	$(srcdir)/bench/run load --long
	$(srcdir)/bench/run handoff
	$(srcdir)/bench/run many
	$(srcdir)/bench/run line
	$(srcdir)/bench/run difference
	$(srcdir)/bench/run incremental
	$(srcdir)/bench/run adopt
	$(srcdir)/bench/run backup
	$(srcdir)/bench/run state

bench_tests = tests/blackbox/bench-smoke.sh
EXTRA_DIST += tests/blackbox/bench-smoke.sh

# A long line; tests use it as well.
check_PROGRAMS += bench/relay
bench_relay_SOURCES = bench/relay.c
bench_relay_LDADD = libbase.la
