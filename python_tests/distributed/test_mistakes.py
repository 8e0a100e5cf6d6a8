"""What is wrong on one rank, or differs between ranks, is said on each of them, and nobody waits for ever."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from torch import nn

import ahkernels as ah
from ahkernels.capture import sharded
from python_tests.distributed import cases
from python_tests.distributed.cases import CLASSES, data, model, shares
from python_tests.distributed.ranks import Failed

COUNTS = [9, 0, 14]


def measure(group, x, y, network, options):
    ah.layerwise_alignment(network, x, y, process_group=group, **options)


def measure_or_capture(group, x, y, network, options):
    """Rank 2 calls something else than the others."""
    if group.rank() == 2:
        ah.tangent_kernels(network, x, process_group=group)
    else:
        ah.layerwise_alignment(network, x, y, process_group=group)


def statistic(group, x, y, network, options):
    """A statistic of kernels with the options of this rank."""
    kernel = ah.tangent_kernels(network, x, process_group=group)["0"]
    name = options.pop("name")
    if name == "product":
        kernel @ torch.ones(options["rows"])
    elif name in ("cka", "label_correlation", "estimate_cka"):
        getattr(ah, name)(kernel, y, **options)
    else:
        getattr(ah, name)(kernel, **options)


def deeper() -> nn.Module:
    return nn.Sequential(*model("mlp", torch.float64), nn.Tanh(), nn.Linear(CLASSES, CLASSES, dtype=torch.float64))


def in_float32() -> nn.Module:
    return model("mlp", torch.float32)


def diverged() -> nn.Module:
    network = model("mlp", torch.float64)
    with torch.no_grad():
        network[2].weight[0, 0] = float("nan")
    return network


def with_buffer(value: float):
    def network() -> nn.Module:
        made = model("mlp", torch.float64)
        made[0].register_buffer("seen", torch.full((2,), value))
        return made

    return network


MISTAKES = {
    # name: (what each rank passes instead, the error of the rank that has it, words in the message on each rank)
    "labels too short": ({"y": {2: lambda y: y[:-1]}}, "ValueError", "y: expected 14"),
    "a class too many": ({"y": {2: lambda y: y + 3}}, "ValueError", "y: expected class indices"),
    "labels as floats": ({"y": {0: lambda y: y.double()}}, "ValueError", "y: expected integer"),
    "inputs too narrow": ({"x": {2: lambda x: x[:, :-1]}}, "RuntimeError", "mat1"),
    "a nan in the inputs": ({"x": {0: lambda x: x * float("nan")}}, "ValueError", "x: expected finite"),
    "a list of samples": ({"x": {0: lambda x: list(x)}}, "TypeError", "x: expected a tensor"),
    "no sample at all": ({"x": dict.fromkeys(range(3), lambda x: x[:0])}, "ValueError", "x: expected at least one"),
    "another centering": ({"options": {2: {"centering": "per_output"}}}, "ValueError", "centering: expected"),
    "more statistics": ({"options": {0: {"statistics": ["stable_rank"]}}}, "ValueError", "statistics: expected"),
    "an unknown statistic": ({"options": {0: {"statistics": ["rank"]}}}, "ValueError", "statistics: expected"),
    "other outputs": ({"options": {1: {"outputs": "trace"}}}, "ValueError", "outputs: expected"),
    "other layers": ({"options": {2: {"layers": "0"}}}, "ValueError", "layers: expected"),
    "an unknown layer": ({"options": {rank: {"layers": "7"} for rank in range(3)}}, "ValueError", "layers: expected"),
    "another precision": ({"options": {1: {"precision": "medium"}}}, "ValueError", "precision: expected"),
    "another budget": ({"options": {0: {"memory_budget": 1 << 20}}}, "ValueError", "memory_budget: expected"),
    "another certify": ({"options": {2: {"certify": 0}}}, "ValueError", "certify: expected"),
    "estimates on one rank": ({"options": {2: {"products": 12}}}, "ValueError", "products: expected"),
    "layers on one rank": ({"options": {2: {"shard": "layers"}}}, "", "expected"),
    "an unknown shard": ({"options": {0: {"shard": "rows"}}}, "ValueError", "shard: expected"),
    "a deeper model": ({"network": {2: deeper}}, "ValueError", "layers: expected"),
    "a model in float32": ({"network": {2: in_float32}}, "ValueError", "x: expected the dtype"),
    "a model that diverged": ({"network": {2: diverged}}, "ValueError", "model: expected 2.weight (float64"),
    "models that diverged": (
        {"network": dict.fromkeys(range(3), diverged)},
        "NonFiniteError",
        "expected finite numbers",
    ),
    "a buffer of its own": (
        {"network": {1: with_buffer(1.0), 0: with_buffer(0.0), 2: with_buffer(0.0)}},
        "ValueError",
        "model: expected 0.seen",
    ),
}


def pick(changed: dict, name: str, rank: int, value: object) -> object:
    if rank not in changed.get(name, {}):
        return value
    new = changed[name][rank]
    return new if isinstance(new, dict) else new(value) if name in "xy" else new()


def arguments(changed: dict) -> list[list]:
    x, y = data("mlp", torch.float64)
    xs, ys = shares(x, COUNTS), shares(y, COUNTS)
    return [
        [pick(changed, "x", rank, xs[rank]) for rank in range(3)],
        [pick(changed, "y", rank, ys[rank]) for rank in range(3)],
        [pick(changed, "network", rank, model("mlp", torch.float64)) for rank in range(3)],
        [pick(changed, "options", rank, {}) for rank in range(3)],
    ]


def works(ranks) -> None:
    """The group is as good as before."""
    ranks.all(3, measure, *arguments({}))


@pytest.mark.parametrize("name", MISTAKES)
def test_each_rank_says_what_is_wrong(ranks, name):
    changed, kind, words = MISTAKES[name]
    found = ranks.run(3, measure, *arguments(changed))
    assert all(isinstance(one, Failed) for one in found)
    messages = [one.args[0] for one in found]
    assert all(words in message for message in messages), messages
    if kind:
        assert any(message.startswith(kind) for message in messages), messages
    works(ranks)


def test_ranks_that_call_different_functions(ranks):
    found = ranks.run(3, measure_or_capture, *arguments({}))
    assert all("call: expected layerwise_alignment" in one.args[0] for one in found)
    works(ranks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([{"name": "eigenvalues", "k": 2}, {"name": "eigenvalues", "k": 2}, {"name": "eigenvalues", "k": 3}], "k=3"),
        ([{"name": "eigenvalues", "k": 0}] * 3, "k: expected a whole number"),
        ([{"name": "stable_rank"}, {"name": "eigenvalues", "k": 2}, {"name": "stable_rank"}], "the same call"),
        ([{"name": "cka"}, {"name": "cka"}, {"name": "cka", "centering": "per_output"}], "the same call"),
        ([{"name": "product", "rows": rows} for rows in (36, 0, 9)], "v: expected"),
    ],
    ids=str,
)
def test_statistics_with_different_arguments(ranks, options, words):
    x, y, network, _ = arguments({})
    found = ranks.run(3, statistic, x, y, network, [dict(one) for one in options])
    assert all(isinstance(one, Failed) and words in one.args[0] for one in found), found
    works(ranks)


def raises_inside(group, x, y, network, options):
    """An error between two exchanges, on rank 0 alone."""
    from ahkernels.statistics import alignment_numbers

    if group.rank() == 0:

        def fail(*_):
            raise MemoryError("no memory is left")

        alignment_numbers.tangent_moments = fail
    measure(group, x, y, network, options)


def test_an_error_in_the_middle_is_told_at_once(tmp_path):
    from python_tests.distributed.ranks import ranks_of

    with ranks_of(2, tmp_path) as pool:
        found = pool.run(2, raises_inside, *(one[:2] for one in arguments({})))
    assert found[0].args[0].startswith("MemoryError")
    for other in found[1:]:
        assert other.args[0].startswith("RankError: rank 0 stopped: MemoryError: no memory is left"), other


def with_words_of_its_own(group, x, y):
    """Rank 0 captures an embedding without the words of the others."""
    alone = mock.patch.object(sharded.ShardedCapture, "_vocabulary", lambda _, words: torch.unique(words))
    with alone if group.rank() == 0 else contextlib.nullcontext():
        ah.layerwise_alignment(model("words", torch.float64), x, y, process_group=group)


def test_an_embedding_that_some_ranks_alone_capture(ranks):
    x, y = data("words", torch.float64)
    found = ranks.run(3, with_words_of_its_own, shares(x, COUNTS), shares(y, COUNTS))
    expected = "KnownError: model: expected layer 'table' to be captured alike on all ranks, got an embedding with its "
    assert all(one.args[0].startswith(expected + "words on rank 2 alone") for one in found), found
    works(ranks)


def test_what_is_no_group_is_refused():
    x, y = data("mlp", torch.float64)
    with pytest.raises(TypeError, match=r"process_group: expected a group of torch\.distributed"):
        ah.layerwise_alignment(model("mlp", torch.float64), x, y, process_group="world")


def test_a_kernel_over_several_processes_has_no_dense_form(ranks):
    found = ranks.run(2, cases.dense, [torch.randn(4, 5), torch.randn(3, 5)])
    assert all("to_dense: expected a kernel whose samples are all in this process" in one.args[0] for one in found)
