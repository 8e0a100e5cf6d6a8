"""The parts that benchmarks share, one idea a file; nothing here imports the comparison or a script."""
