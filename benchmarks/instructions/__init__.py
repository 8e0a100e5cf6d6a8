"""Instructions that the CPU ops execute: `python -m benchmarks.instructions [--check]`."""
