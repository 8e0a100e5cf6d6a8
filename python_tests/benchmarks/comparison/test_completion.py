"""What plain torch makes of a library's factors, kernels or Jacobians, beside the reference in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.comparison import measuring, problem, reference
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import QUANTITIES, Task
from benchmarks.comparison.worker_process import WorkerProcess
from python_tests.benchmarks.comparison.completed import torch_func

VARIANTS_OF_MLP = ("factors", "Jacobians", "Jacobians of two samples", "copies of samples")
MODULE, REFERENCE = torch_func.__name__, reference.__name__


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess(Path(sys.executable), 1, None)
    yield process
    process.close()


def value(worker: WorkerProcess, module: str, variant: str, given: Problem, folder: Path) -> np.ndarray:
    given.save(folder / measuring.PROBLEM)
    measuring.make_job(worker, module, variant, given.task, folder, 120)
    return measuring.value_of(worker, variant, folder, 120)


@pytest.mark.parametrize("variant", VARIANTS_OF_MLP)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_completion_against_float64(worker: WorkerProcess, tmp_path: Path, quantity: str, variant: str) -> None:
    given = problem.make(Task(quantity, n=6, depth=4, width=16, outputs=3))
    expected = value(worker, REFERENCE, "", given, tmp_path)
    found = value(worker, MODULE, variant, given, tmp_path)
    assert found.shape == expected.shape
    assert measuring.relative_error(found, expected) < 1e-5


def test_eigenvalue_from_products_with_factors(worker: WorkerProcess, tmp_path: Path) -> None:
    # More rows than K is formed for.
    given = problem.make(Task("top_eigenvalue", n=600, depth=3, width=8, outputs=2))
    expected = value(worker, REFERENCE, "", given, tmp_path)
    assert measuring.relative_error(value(worker, MODULE, "factors", given, tmp_path), expected) < 1e-5


def small_and_trained() -> Problem:
    """A ResNet whose norms do something, as they do after training, and images small enough for float64.

    The norms of a new network have mean 0, variance 1, scale 1 and shift 0, and leaving one of them out goes unseen.
    """
    made = problem.make(Task("alignment", "resnet18", n=2, outputs=2))
    generator, state = np.random.default_rng(1), dict(made.state)
    for name in made.state:
        norm, _, last = name.rpartition(".")
        if last == "running_var":
            channels = len(made.state[name])
            for part in ("running_mean", "bias"):
                state[f"{norm}.{part}"] = generator.normal(0, 0.1, channels).astype(np.float32)
            for part in ("running_var", "weight"):
                state[f"{norm}.{part}"] = generator.uniform(0.5, 1.5, channels).astype(np.float32)
    return replace(made, x=made.x[..., ::2, ::2], state=state)


@pytest.fixture(scope="module")
def residual(worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, np.ndarray]:
    """A problem of a residual network and the reference's value of it."""
    given = small_and_trained()
    return given, value(worker, REFERENCE, "", given, tmp_path_factory.mktemp("reference"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["Jacobians", "frozen norms"])
def test_completion_for_residual_network(
    worker: WorkerProcess, residual: tuple[Problem, np.ndarray], tmp_path: Path, variant: str
) -> None:
    """In float64 like the reference, so that nothing is left of the error but what the completion does wrong.

    In float32 each number of J J^T is a sum over up to 2.4 million parameters, whose error depends on the processor's
    matrix product: on AMD Zen 4 it is 4e-4 of K, and 4e-3 of the alignment.
    """
    given, expected = residual
    found = value(worker, MODULE, f"{variant} in float64", given, tmp_path)
    assert measuring.relative_error(found, expected) < 1e-10
