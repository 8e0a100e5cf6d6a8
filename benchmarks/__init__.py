"""One script for each claim, run from the repository root as `python -m benchmarks.NAME`."""
