"""The contenders as the runner sees them, without their libraries, and the part of their jobs that is plain torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.comparison import grouping, problem, reference
from benchmarks.comparison.contenders import Contender, discover
from benchmarks.comparison.measuring import relative_error
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import QUANTITIES, Task, sweeps, tables
from benchmarks.comparison.worker_process import Worker

CONTENDERS = discover()
(COMPLETED,) = discover("completed")
VARIANTS_OF_MLP = ("factors", "Jacobians", "Jacobians of two samples", "copies of samples")
PEERS = ("asdl", "backpack", "curvlinops", "neural_tangents", "nngeometry", "opacus", "torchjd")
ids = {"ids": lambda one: one.name}


def tasks(device: str) -> list[Task]:
    return [*tables(device), *(task for sweep in sweeps(device) for task in sweep.tasks())]


def test_all_peers_take_part() -> None:
    assert set(PEERS) <= {one.name for one in CONTENDERS}


def test_no_library_is_imported_by_reading_what_a_contender_is() -> None:
    code = "import sys; from comparison.contenders import discover; discover(); print(*sys.modules)"
    root = Path(grouping.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout.split()
    assert not {"torch", "jax", "scipy", *PEERS} & set(done.stdout.split())


@pytest.mark.parametrize("contender", CONTENDERS, **ids)
def test_contender_is_well_formed(contender: Contender) -> None:
    assert contender.title and contender.module.__doc__
    assert contender.variants and all(isinstance(one, str) for one in contender.variants)
    for one in contender.requirements:
        package, _, version = one.partition("==")
        assert package and (version == "{torch}" or version[0].isdigit()), one
    assert len(set(contender.variants)) == len(contender.variants)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("contender", CONTENDERS, **ids)
def test_reason_why_it_is_unable_is_a_short_clause(contender: Contender, device: str) -> None:
    for task in tasks(device):
        for variant in contender.variants:
            reason = contender.unable(task, variant)
            assert reason is None or (0 < len(reason) <= 80 and not reason.endswith(".") and "\n" not in reason)


@pytest.mark.parametrize("name", PEERS)
def test_peer_has_a_way_to_every_table_of_the_cpu(name: str) -> None:
    (peer,) = (one for one in CONTENDERS if one.name == name)
    for task in tables("cpu"):
        assert any(peer.unable(task, variant) is None for variant in peer.variants), task.name


def test_groups_keep_order_and_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "BUDGET", 10)
    assert list(grouping.groups([3, 4, 5, 6, 7], [4, 6, 1, 30, 2])) == [[3, 4], [5], [6], [7]]
    assert list(grouping.groups([], [])) == []


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process of its own: benchmarks and experiments have a package `common` each."""
    process = Worker(Path(sys.executable), COMPLETED.root, 1, None)
    yield process
    process.close()


def value(worker: Worker, module: str, variant: str, given: Problem, folder: Path) -> np.ndarray:
    given.save(folder / "problem.npz")
    about = {"contender": module, "task": given.task.to_dict(), "problem": str(folder / "problem.npz")}
    worker.ask(120, do="prepare", variant=variant, **about)
    worker.ask(120, do="peak", variant=variant)
    worker.ask(60, do="value", variant=variant, path=str(folder / "value.npy"))
    worker.ask(60, do="forget", variant=variant)
    return np.load(folder / "value.npy")


@pytest.mark.parametrize("variant", VARIANTS_OF_MLP)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_completion_against_float64(worker: Worker, tmp_path: Path, quantity: str, variant: str) -> None:
    given = problem.make(Task(quantity, n=6, depth=4, width=16, outputs=3))
    expected = value(worker, reference.__name__, "", given, tmp_path)
    found = value(worker, COMPLETED.module.__name__, variant, given, tmp_path)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-5


def test_eigenvalue_from_products_with_factors(worker: Worker, tmp_path: Path) -> None:
    # More rows than K is formed for.
    given = problem.make(Task("top_eigenvalue", n=600, depth=3, width=8, outputs=2))
    expected = value(worker, reference.__name__, "", given, tmp_path)
    assert relative_error(value(worker, COMPLETED.module.__name__, "factors", given, tmp_path), expected) < 1e-5


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


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["Jacobians", "frozen norms"])
def test_completion_for_residual_network(worker: Worker, tmp_path: Path, variant: str) -> None:
    """In float64 like the reference, so that nothing is left of the error but what the completion does wrong.

    In float32 each number of J J^T is a sum over up to 2.4 million parameters, whose error depends on the processor's
    matrix product: on AMD Zen 4 it is 4e-4 of K, and 4e-3 of the alignment.
    """
    given = small_and_trained()
    expected = value(worker, reference.__name__, "", given, tmp_path)
    found = value(worker, COMPLETED.module.__name__, f"{variant} in float64", given, tmp_path)
    assert relative_error(found, expected) < 1e-10
