"""benchmarks/centering_witness.py without NNGeometry: what counts as agreement, and an option that does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "centering_witness.py"
# Ours, then what NNGeometry is made to say, and whether that is agreement.
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
VERDICTS = """
import json, sys
import centering_witness as script

ours, said = json.loads(sys.argv[1])
layers = {
    name: script.side_by_side("mlp", "float64", ours, {"right": ours["per_output"], "other": values})
    for name, values in said.items()
}
print(json.dumps({name: [script.verdict(one), [layer.layer for layer in one]] for name, one in layers.items()}))
"""


def run(*given: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: benchmarks and experiments have a package `common` each."""
    return subprocess.run([sys.executable, *given], capture_output=True, text=True, cwd=SCRIPT.parent, timeout=60)


def test_agreement_is_of_every_layer_by_every_way_and_never_with_the_other_centering() -> None:
    ours = {"per_output": PER_OUTPUT, "global": GLOBAL}
    done = run("-c", VERDICTS, json.dumps([ours, {name: said for name, (said, _) in SAID.items()}]))
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout.splitlines()[-1])
    assert {name: status == 0 for name, (status, _) in verdicts.items()} == {name: ok for name, (_, ok) in SAID.items()}
    assert all(layers == ["0", "2"] + ["4"] * (name == "one layer more") for name, (_, layers) in verdicts.items())
    assert "mlp, float64, layer 2: 0.0e+00 (right), 2.0e-05 (other), more than 1e-05" in done.stderr
    assert "mlp, float64, layer 4: nan (right), nan (other), more than 1e-05" in done.stderr


def test_samples_that_are_none_are_refused() -> None:
    done = run(str(SCRIPT), "--samples", "0")
    assert done.returncode == 2
    assert "argument --samples: expected a whole number above 0, got '0'" in done.stderr
