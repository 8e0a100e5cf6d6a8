"""The study of theory at large depth: its exponents, its files, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import scripts
from equilibrium import main, parse

TINY = [
    *("--width", "32", "--finite-depth", "4", "--draws", "4", "--widths", "16", "32", "64", "--kernel-draws", "1"),
    *("--probe-size", "20", "--layerwise-depth", "200", "--threads", "1"),
]
FIGURES = ["theorem1", "theorem2", "corollary1", "finite_width", "kernel_convergence", "initial_alignment"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_tables_and_figures_and_fits_the_exponents_of_the_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--output", str(tmp_path)]) == 0
    for name in FIGURES:
        assert read(tmp_path / f"{name}.csv")
        assert all((tmp_path / f"{name}.{suffix}").stat().st_size for suffix in ("svg", "png"))
    assert json.loads((tmp_path / "config.json").read_text())["epsilon"] == 0.1
    fitted = {row["name"]: float(row["corrected_exponent"]) for row in read(tmp_path / "exponents.csv")}
    assert fitted["theorem 1: forward loss"] == pytest.approx(-2, abs=1e-4)
    assert fitted["theorem 2, case 1: l = 0.5 L"] == pytest.approx(-1, abs=0.03)
    assert fitted["theorem 2, case 2: l = L^0.5"] == pytest.approx(-3, abs=0.03)
    assert fitted["corollary 1: ReLU"] == pytest.approx(0.6, abs=1e-3)
    assert "corollary 1: ReLU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "1"], "argument --epsilon: expected a number in (0, 1)"),
        (["--widths", "8", "8", "16"], "argument --widths: expected distinct numbers"),
        (["--widths", "8", "16"], "argument --widths: expected at least 3 numbers"),
        (["--dataset", "mnist"], "argument --data-dir: expected the folder"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in scripts.refused(parse, arguments, capsys)
