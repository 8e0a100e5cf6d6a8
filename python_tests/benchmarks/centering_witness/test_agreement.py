"""The agreement with NNGeometry without NNGeometry: what counts as agreement, and an option that does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.centering_witness.agreement import side_by_side, verdict

ROOT = Path(__file__).resolve().parents[3]
# The alignments that NNGeometry is made to report beside ours, and whether they agree.
PER_OUTPUT, GLOBAL = {"0": 0.02, "2": 0.03}, {"0": 0.01, "2": 0.004}
SAID = {
    "the same": (PER_OUTPUT, True),
    "within the tolerance": ({**PER_OUTPUT, "2": 0.03 * (1 + 9e-6)}, True),
    "beyond the tolerance": ({**PER_OUTPUT, "2": 0.03 * (1 - 2e-5)}, False),
    "the other centering": (GLOBAL, False),
    "no number": ({**PER_OUTPUT, "2": float("nan")}, False),
    "one layer less": ({"0": 0.02}, False),
    "one layer more": ({**PER_OUTPUT, "4": 0.5}, False),
    "nothing": ({}, False),
}


def test_agreement_is_of_every_layer_by_every_way_and_never_with_the_other_centering(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = {"per_output": PER_OUTPUT, "global": GLOBAL}
    for name, (said, agrees) in SAID.items():
        layers = side_by_side("mlp", "float64", ours, {"right": PER_OUTPUT, "other": said})
        assert (verdict(layers) == 0) == agrees, name
        assert [layer.layer for layer in layers] == ["0", "2"] + ["4"] * (name == "one layer more")
    errors = capsys.readouterr().err
    assert "mlp, float64, layer 2: 0.0e+00 (right), 2.0e-05 (other), more than 1e-05" in errors
    assert "mlp, float64, layer 4: nan (right), nan (other), more than 1e-05" in errors


def test_samples_that_are_none_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.centering_witness", "--samples", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert "argument --samples: expected a whole number above 0, got '0'" in done.stderr
