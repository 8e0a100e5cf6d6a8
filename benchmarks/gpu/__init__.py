"""Benchmarks of a GPU, and the parts of run_on_gpu.py: stages, files of rows, libraries that were built elsewhere."""
