"""The contenders as the runner sees them, without their libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.comparison.contenders import Contender, discover
from benchmarks.comparison.tasks import Task, sweeps, tables

ROOT = Path(__file__).resolve().parents[3]
CONTENDERS = discover()
PEERS = ("asdl", "backpack", "curvlinops", "neural_tangents", "nngeometry", "opacus", "torchjd")
ids = {"ids": lambda one: one.name}


def tasks(device: str) -> list[Task]:
    return [*tables(device), *(task for sweep in sweeps(device) for task in sweep.tasks())]


def test_all_peers_take_part() -> None:
    assert set(PEERS) <= {one.name for one in CONTENDERS}


def test_no_library_is_imported_by_reading_what_a_contender_is() -> None:
    code = "import sys; from benchmarks.comparison.contenders import discover; discover(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
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
            assert reason is None or reason == reason.strip()


@pytest.mark.parametrize("name", PEERS)
def test_peer_has_a_way_to_every_table_of_the_cpu(name: str) -> None:
    (peer,) = (one for one in CONTENDERS if one.name == name)
    for task in tables("cpu"):
        assert any(peer.unable(task, variant) is None for variant in peer.variants), task.name
