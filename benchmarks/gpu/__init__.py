"""What run_on_gpu.py runs: benchmarks of a GPU, and the stages, row files and libraries that the run is made of."""
