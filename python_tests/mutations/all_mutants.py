"""All mutants, in the order of the package."""

from __future__ import annotations

from python_tests.mutations.mutants import capture, cuda, distributed, experiments, extension, ops, results, statistics

MUTANTS = [
    *capture.MUTANTS,
    *ops.MUTANTS,
    *statistics.MUTANTS,
    *distributed.MUTANTS,
    *results.MUTANTS,
    *experiments.MUTANTS,
    *extension.MUTANTS,
    *cuda.MUTANTS,
]
