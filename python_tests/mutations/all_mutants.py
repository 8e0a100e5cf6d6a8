"""All mutants, in the order of the package."""

from __future__ import annotations

from python_tests.mutations.mutants import (
    amx,
    capture,
    cuda,
    cuda_host,
    distributed,
    experiments,
    extension,
    near_constant,
    ops,
    results,
    schedules,
    statistics,
)

MUTANTS = [
    *capture.MUTANTS,
    *ops.MUTANTS,
    *statistics.MUTANTS,
    *distributed.MUTANTS,
    *results.MUTANTS,
    *experiments.MUTANTS,
    *extension.MUTANTS,
    *amx.MUTANTS,
    *cuda.MUTANTS,
    *cuda_host.MUTANTS,
    *near_constant.MUTANTS,
    *schedules.MUTANTS,
]
