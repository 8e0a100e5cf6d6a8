"""What the benchmarks share: one idea per file."""
