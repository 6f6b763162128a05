# Benchmarks are run by hand: bench/run, or make bench.  make check only proves that they run.

EXTRA_DIST += bench/README.md bench/run bench/adopt.py bench/common.py bench/idle.py \
	bench/overhead.py \
	bench/large.py bench/load.py bench/load_guest.py bench/load_plot.py bench/load_systems.py \
	bench/qmp.py bench/handoff.py bench/many.py bench/difference.py \
	bench/difference_systems.py bench/line.py bench/incremental.py bench/state.py \
	bench/slow-sync.c bench/backup.py bench/backup_systems.py bench/pull.py

# What cannot be measured here, for lack of a program, ends with 77 and is passed over.
.PHONY: bench
bench: all bench/relay$(EXEEXT)
	$(srcdir)/bench/run idle || test $$? = 77
	$(srcdir)/bench/run overhead || test $$? = 77
	$(srcdir)/bench/run large || test $$? = 77
	$(srcdir)/bench/run load || test $$? = 77
	$(srcdir)/bench/run load --long || test $$? = 77
	$(srcdir)/bench/run handoff || test $$? = 77
	$(srcdir)/bench/run many || test $$? = 77
	$(srcdir)/bench/run line || test $$? = 77
	$(srcdir)/bench/run difference || test $$? = 77
	$(srcdir)/bench/run incremental || test $$? = 77
	$(srcdir)/bench/run adopt || test $$? = 77
	$(srcdir)/bench/run backup || test $$? = 77
	$(srcdir)/bench/run state || test $$? = 77

bench_tests = tests/blackbox/bench-smoke.sh
EXTRA_DIST += tests/blackbox/bench-smoke.sh

# A long line; tests use it as well.
check_PROGRAMS += bench/relay
bench_relay_SOURCES = bench/relay.c
bench_relay_LDADD = libbase.la
