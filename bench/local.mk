# Benchmarks are run by hand: bench/run, or make bench.  make check only proves that they run.

EXTRA_DIST += bench/README.md bench/run bench/common.py bench/idle.py bench/overhead.py \
	bench/large.py

.PHONY: bench
bench: all
	$(srcdir)/bench/run idle
	$(srcdir)/bench/run overhead
	$(srcdir)/bench/run large

TESTS += tests/blackbox/bench-smoke.sh
EXTRA_DIST += tests/blackbox/bench-smoke.sh
