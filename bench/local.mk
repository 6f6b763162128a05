# Benchmarks are run by hand (bench/run), not by make check.
