"""A quick run of benchmarks/third_party, and its reference on a network whose Jacobian is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.common.script import RESULTS
from benchmarks.third_party import explicit, layers, reference
from benchmarks.third_party.networks import NETWORKS
from benchmarks.third_party.problem import OUTPUTS, SAMPLES, Problem, images, move_constants, take_statistics

ROOT = Path(__file__).resolve().parents[2]


def linear() -> Problem:
    """A network of one layer, called with a tuple of arguments."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, OUTPUTS))
    return Problem(model, (torch.randn(SAMPLES, 4),), lambda found: found)


@pytest.mark.slow
def test_a_quick_run_writes_a_row_for_each_network_of_torch(tmp_path: Path) -> None:
    output, before = tmp_path / "third_party.json", sorted(RESULTS.iterdir())
    options = ["--threads", "1", "--repeats", "1", "--limit", "0.2", "--output", str(output)]
    command = [sys.executable, "-m", "benchmarks.third_party", "--quick", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert record["benchmark"] == "third_party" and record["quick"]
    assert [row["network"] for row in record["networks"]] == [one.name for one in NETWORKS if one.library == "torch"]
    for row in record["networks"]:
        assert row["refusal"] is None and row["no_float64"] is None and row["refusal_float64"] is None
        assert row["kernel_difference"] < 1e-5 and row["alignment_difference"] < 1e-4, row
        assert row["kernel_difference_float64"] < 1e-12 and row["alignment_difference_float64"] < 1e-10, row
        assert row["from_jacobians"] < 1e-5 and row["ours_s"] > 0 and row["jacobians_s"] > 0
    assert record["summary"]["measured_as_they_are"] == record["summary"]["networks"]
    kept = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert kept.returncode == 0, kept.stderr
    assert json.loads(output.read_text())["networks"] == record["networks"]
    assert sorted(RESULTS.iterdir()) == before


def test_there_are_forty_networks_of_ten_libraries() -> None:
    names = {(one.library, one.name) for one in NETWORKS}
    assert len(names) == len(NETWORKS) >= 40 and len({library for library, _ in names}) >= 10
    required = (ROOT / "benchmarks" / "third_party" / "requirements.txt").read_text()
    for one in NETWORKS:
        assert one.library == "torch" or f"\n{one.library}==" in required, one.library


def test_a_library_that_is_missing_has_no_version() -> None:
    missing = NETWORKS[0].__class__("torch", "network", linear, needs=("no-such-distribution",))
    assert missing.version is None and NETWORKS[0].version is not None


@pytest.mark.parametrize("way", explicit.WAYS.values(), ids=list(explicit.WAYS))
def test_every_way_gives_the_jacobian_of_a_linear_layer(way: explicit.Way) -> None:
    problem = linear()
    weight, bias = (part.detach().reshape(SAMPLES, OUTPUTS, -1) for part in parts_of(way, problem))
    expected = torch.einsum("na,ij->nija", problem.x[0], torch.eye(OUTPUTS))
    torch.testing.assert_close(weight, expected.flatten(2))
    torch.testing.assert_close(bias, torch.eye(OUTPUTS).expand(SAMPLES, -1, -1))


def parts_of(way: explicit.Way, problem: Problem) -> list[torch.Tensor]:
    """The parts for the weight and for the bias."""
    return [torch.cat(list(way(problem, [name])), 1) for name in ("0.weight", "0.bias")]


def test_the_reference_is_the_kernel_of_a_linear_layer() -> None:
    problem = linear()
    x = problem.x[0].double()
    expected = torch.kron(x @ x.mT + 1, torch.eye(OUTPUTS, dtype=torch.float64))
    torch.testing.assert_close(reference.kernels(problem, ["0"], in_float64=True), [expected])
    rounded = reference.kernels(problem, ["0"], in_float64=False)[0]
    torch.testing.assert_close(rounded, expected, rtol=1e-5, atol=1e-5)
    assert (rounded != expected).any()


def test_layers_are_found_by_their_parameters() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 3))
    model.append(model[2])
    found = layers.parameters_by_layer(model)
    assert list(found) == ["0", "2"] and len(found["0"]) == 3
    assert layers.parameters_of({"module.2": ["module.2.weight"]}, "2") == ["module.2.weight"]


def test_a_few_layers_are_first_middle_last_and_rarest() -> None:
    kinds = {"a": "Linear", "b": "Linear", "c": "Conv2d", "d": "Linear", "e": "Norm", "f": "Norm"}
    assert layers.a_few(kinds) == ["a", "d", "f", "c"]
    assert layers.a_few(kinds, ["e", "f"]) == ["a", "d", "f", "e"]
    assert layers.a_few({"a": "Linear"}) == ["a"]


def test_networks_are_prepared_so_that_no_kernel_is_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, OUTPUTS))
    nn.init.zeros_(model[3].weight)
    before = model[0].weight.clone()
    move_constants(model)
    take_statistics(Problem(model, images(8)))
    assert (model[3].weight != 0).all() and (model[1].weight != 1).all() and torch.equal(model[0].weight, before)
    assert (model[1].running_mean != 0).all() and (model[1].running_var != 1).all()


def test_layers_are_measured_until_the_limit() -> None:
    owned = {"first": ["0.weight"], "second": ["0.bias"]}
    one = explicit.alignments(linear, owned, limit=1e-9)
    assert len(one.alignments) == 1 and one.ways == {"vmap": 1} and one.refusal is None
    assert len(explicit.alignments(linear, owned, limit=60).alignments) == 2


def test_a_network_that_vmap_refuses_is_measured_sample_by_sample() -> None:
    class Branching(nn.Linear):
        """A layer with a condition on its input."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if float(x.detach().sum()) < 1e9 else x

    timed = explicit.alignments(
        lambda: Problem(Branching(4, OUTPUTS), torch.randn(SAMPLES, 4)), {"": ["weight"]}, limit=60
    )
    assert timed.refusal is not None and "vmap" in timed.refusal and sum(timed.ways.values()) == 1


def test_zeros_of_parameters_that_torch_func_does_not_reach_are_not_taken() -> None:
    class Hidden(nn.Linear):
        """A layer that holds its weight in a list, too."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.held[0].mT

    def build() -> Problem:
        torch.manual_seed(0)
        model = Hidden(4, OUTPUTS, bias=False)
        model.held = [model.weight]
        return Problem(model, torch.randn(SAMPLES, 4))

    timed = explicit.alignments(build, {"": ["weight"]}, limit=60)
    assert timed.ways == {explicit.LAST: 1} and timed.refusal == "ArithmeticError: the Jacobian is zero or not finite"
    assert 0 < timed.alignments[""] < 1
