"""The study of equilibrium: its exponents against the theorems, its networks against the limit, refusals."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import pytest
import studies

import ahkernels as ah
from experiments.common import data
from experiments.common.store import Row, csv_of
from experiments.equilibrium import trained_peaks
from experiments.equilibrium.__main__ import STUDY

TINY = [
    *("--width", "64", "--finite-depth", "5", "--draws", "8", "--widths", "32", "64", "128", "256"),
    *("--alignment-widths", "16", "256", "--kernel-draws", "3", "--layerwise-depth", "400", "--probe-size", "24"),
]
FIGURES = ("theorem1", "theorem2", "corollary1", "finite_width", "kernel_convergence", "initial_alignment")


def test_a_run_leaves_tables_and_figures(output: Path) -> None:
    for name in FIGURES:
        assert studies.texts(output / f"{name}.csv")
        assert (output / f"{name}.png").stat().st_size > 10_000
        assert (output / f"{name}.png").exists()


def test_exponents_are_those_of_the_theorems(output: Path) -> None:
    fits = {row["name"]: row for row in studies.texts(output / "exponents.csv")}
    for name, share in (("theorem 1: forward loss", 0.01), ("theorem 2, case 2: l = L^0.5", 0.01)):
        assert float(fits[name]["corrected_exponent"]) == pytest.approx(float(fits[name]["theory"]), rel=share)
    assert float(fits["theorem 2, case 1: l = 0.5 L"]["corrected_exponent"]) == pytest.approx(-1, abs=0.01)
    assert float(fits["corollary 1: ReLU"]["corrected_exponent"]) == pytest.approx(0.6, abs=0.01)
    assert float(fits["corollary 1: residual ReLU, scale 1/√L"]["corrected_exponent"]) == pytest.approx(1, abs=0.02)
    assert -0.9 < float(fits["tangent kernels at finite width"]["plain_exponent"]) < -0.3


@pytest.mark.parametrize("kind", ["per_output", "global", "trace"])
def test_wider_networks_are_closer_to_the_limit(output: Path, kind: str) -> None:
    rows = studies.texts(output / "initial_alignment.csv")

    def gap(width: int) -> float:
        found = [
            sum(float(row[f"{kind}_width_{width}_seed_{seed}"]) for seed in range(4)) / 4
            - float(row[f"predicted_{kind}"])
            for row in rows
        ]
        return max(map(abs, found))

    assert gap(256) < gap(16)


def test_nothing_is_computed_twice(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again only draws, with the same bytes."""
    before = {path.name: path.read_bytes() for path in output.glob("*.*")}
    monkeypatch.setattr("experiments.equilibrium.theorems.theorem2", lambda args: pytest.fail("computed again"))
    assert STUDY.main([*TINY, "--output", str(output)]) == 0
    assert "finished before" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.glob("*.*")} == before


def test_a_stopped_study_keeps_the_parts_that_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(args: argparse.Namespace) -> list[Row]:
        signal.raise_signal(signal.SIGTERM)
        return [{"depth": 1}]

    monkeypatch.setattr("experiments.equilibrium.theorems.theorem2", stopping)
    assert STUDY.main([*TINY, "--output", str(tmp_path)]) == 128 + signal.SIGTERM
    assert "to go on:" in capsys.readouterr().err
    assert {path.parent.name for path in tmp_path.glob("*/metrics.csv")} == {"finite_width", "theorem1", "theorem2"}


def test_trained_peaks_stand_beside_the_equilibrium_layer(tmp_path: Path) -> None:
    table = tmp_path / "averaged_curves.csv"
    table.write_bytes(
        csv_of(
            [
                {"lr_factor": 1, "batch_size": 200, "moment": "end", "probe": "train", "centering": centering}
                | {"depth": depth, "seeds": 2, "peak": peak, "near_peak": 1, "least_peak": 1, "greatest_peak": depth}
                for centering, share in (("per_output", 2), ("global", 5))
                for depth in (10, 20, 40)
                for peak in [depth // share]
            ]
        )
    )
    assert [row["peak"] for row in trained_peaks.read(table)] == [5, 10, 20]
    args = STUDY.parse([*TINY, "--trained-peaks", str(table), "--output", str(tmp_path)])
    trained_peaks.compare(args, data.load("digits"), trained_peaks.read(table))
    rows = studies.numbers(tmp_path / "trained_peaks.csv")
    expected = ah.signal_propagation.equilibrium(ah.signal_propagation.Network("relu"), [10, 20, 40])
    assert [row["equilibrium"] for row in rows] == pytest.approx(expected.tolist())
    assert (tmp_path / "trained_peaks.png").stat().st_size > 10_000


def test_another_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert STUDY.main([*TINY, "--trained-peaks", str(tmp_path / "other.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "--trained-peaks: expected averaged_curves.csv" in capsys.readouterr().err
