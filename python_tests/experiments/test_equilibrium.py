"""The study of equilibrium: its exponents against the theorems, its networks against the limit, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import studies

from experiments.equilibrium.__main__ import STUDY  # noqa: F401 (the fixture `output` runs it)

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
    assert {path.name for path in output.glob("*.json")} == {"config.json", "environment.json"}


def test_exponents_are_those_of_the_theorems(output: Path) -> None:
    fits = {row["name"]: row for row in studies.texts(output / "exponents.csv")}
    for name, share in (("theorem 1: forward loss", 0.01), ("theorem 2, case 2: l = L^0.5", 0.01)):
        assert float(fits[name]["corrected_exponent"]) == pytest.approx(float(fits[name]["theory"]), rel=share)
    assert float(fits["theorem 2, case 1: l = 0.5 L"]["corrected_exponent"]) == pytest.approx(-1, abs=0.01)
    assert float(fits["corollary 1: ReLU"]["corrected_exponent"]) == pytest.approx(0.6, abs=0.01)
    assert float(fits["corollary 1: residual ReLU, scale L^-0.5"]["corrected_exponent"]) == pytest.approx(1, abs=0.02)
    assert -0.9 < float(fits["tangent kernels at finite width"]["plain_exponent"]) < -0.3


@pytest.mark.parametrize("outputs", ["all", "trace"])
def test_wider_networks_are_closer_to_the_limit(output: Path, outputs: str) -> None:
    rows = studies.texts(output / "initial_alignment.csv")

    def gap(width: int) -> float:
        found = [
            sum(float(row[f"{outputs}_width_{width}_seed_{seed}"]) for seed in range(4)) / 4
            - float(row[f"predicted_{outputs}"])
            for row in rows
        ]
        return max(map(abs, found))

    assert gap(256) < gap(16)
