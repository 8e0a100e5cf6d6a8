"""What an explanation of several processes says, against what they send, and the choice that follows from it."""

from __future__ import annotations

import functools

import pytest
import torch

import ahkernels as ah
from ahkernels.contraction.order import LayerShape, flops
from ahkernels.distributed.cost import shares
from ahkernels.distributed.samples import pairs_of
from ahkernels.distributed.traffic import NormOverRanks
from python_tests.distributed import cases
from python_tests.distributed.cases import data, model
from python_tests.distributed.ranks import Failed

CENTERINGS = ["global", "per_output", ("global", "per_output")]


def explained(ranks, name, x, counts, centerings, **options):
    """For each centering what each rank has found."""
    call, size = functools.partial(cases.explained, **options), len(counts)
    found = ranks.all(size, call, [name] * size, cases.shares(x, counts), [centerings] * size)
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("counts", [[200], [80, 120], [90, 0, 110], [61, 50, 0, 89]], ids=str)
def test_bytes_are_those_that_ranks_give(ranks, counts):
    """Of every order of contraction."""
    x = torch.randn(200, 2, 11, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for found in explained(ranks, "orders", x, counts, CENTERINGS):
        orders = [one.order for one in found[0]["layers"]]
        assert orders == ["parameters first", "outputs first", "outputs first", "outputs first"]
        compare(found)


@pytest.mark.parametrize(("counts", "name"), [([23], "conv"), ([9, 14], "mlp"), ([0, 11, 12], "conv")], ids=str)
def test_bytes_of_tiles(ranks, counts, name):
    for found in explained(ranks, name, data(name, torch.float64)[0], counts, CENTERINGS):
        assert {one.order for one in found[0]["layers"]} == {"tiles"}
        compare(found)


def test_bytes_of_groups_of_outputs(ranks):
    """Where the offsets of all outputs do not fit."""
    x = data("mlp", torch.float64)[0]
    at_once, in_groups = (explained(ranks, "outputs", x, [12, 11], CENTERINGS, offset_bytes=n) for n in (1 << 20, 1))
    for found in in_groups:
        compare(found)
    for of_all, of_groups in zip(at_once, in_groups, strict=True):
        for layer, norms in of_all[0]["norms"].items():
            assert sorted(of_groups[1]["norms"][layer]) == pytest.approx(sorted(norms), rel=1e-11)
    for of_all, of_groups in list(zip(at_once, in_groups, strict=True))[1:]:  # per output
        assert of_groups[0]["layers"][1].sent[0] > 2 * of_all[0]["layers"][1].sent[0]


def compare(found):
    """Bytes and collectives are counted exactly, and all ranks are told the same."""
    for rank, one in enumerate(found):
        assert {layer.layer: layer.sent[rank] for layer in one["layers"]} == {
            name: sent for name, (sent, _) in one["sent"].items()
        }
        for what in ("layers", "text", "shards"):
            assert one[what] == found[0][what]
    most = max(sum(calls for _, calls in one["sent"].values()) for one in found)
    assert found[0]["shards"]["samples"].collectives == 20 + 7 * len(found[0]["layers"]) + most


def test_work_of_the_busiest_rank(ranks):
    """A rank with half of the samples has a quarter of the pairs within them, and a part of those with the others."""
    x, counts = data("mlp", torch.float64)[0], [12, 4, 7]
    found = explained(ranks, "mlp", x, counts, ["global"])[0][0]
    alone = ah.explain(model("mlp", torch.float64), x)
    busiest = (12**2 + 2 * 12 * 4) / 23**2  # with those of the next rank
    for one, whole in zip(found["layers"], alone, strict=True):
        assert (one.flops, one.order, one.kind) == (whole.flops, whole.order, whole.kind)
        assert one.flops_of_rank == pytest.approx(busiest * whole.flops, rel=1e-6)
        assert whole.sent == () and whole.flops_of_rank == whole.flops
    samples, layers = found["shards"]["samples"], found["shards"]["layers"]
    assert samples.captured == (12, 4, 7) and layers.captured == (23, 23, 23)
    assert samples.flops < layers.flops < 3 * samples.flops
    assert layers.sent == (12 * 5 * 8,) * 3  # inputs, padded to those of the rank with most
    assert samples.sent == tuple(sum(one.sent[rank] for one in found["layers"]) for rank in range(3))
    lines = found["text"].splitlines()
    assert lines[0].endswith("MiB  Gflop of a rank  MiB sent")
    assert [line.split()[0] for line in lines[-2:]] == ["samples", "layers"] and "(above)" in lines[-2]


def test_layers_over_ranks_are_explained(ranks):
    x, counts = data("mlp", torch.float64)[0], [12, 11]
    alone = ah.explain(model("mlp", torch.float64), x)
    for one in explained(ranks, "mlp", x, counts, ["global"], shard="layers")[0]:
        assert one["shard"] == "layers"
        assert [(layer.flops, layer.flops_of_rank, layer.sent) for layer in one["layers"]] == [
            (layer.flops, layer.flops, (0, 0)) for layer in alone
        ]


def fails(group, x, options):
    network = model("wide" if "memory_budget" in options else "mlp", torch.float64)
    ah.explain(network, x, process_group=group, **options)


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ([23, 0], [{"shard": "layers"}] * 2, 'shard: expected "samples" where a rank has no sample'),
        ([12, 11], [{}, {"centering": "per_output"}], "centering: expected ('global',) on every rank"),
        ([12, 11], [{}, {"shard": "auto"}], "shard: expected samples on every rank"),
        ([12, 11], [{"memory_budget": 600_000}] * 2, "memory_budget: expected room"),
    ],
    ids=str,
)
def test_ranks_that_cannot_explain(ranks, counts, options, words):
    found = ranks.run(2, fails, cases.shares(data("mlp", torch.float64)[0], counts), options)
    assert all(isinstance(one, Failed) and words in one.args[0] for one in found), found


@pytest.mark.parametrize(
    ("counts", "options", "wanted"),
    [
        ([12, 11], {}, "layers"),
        ([12, 11], {"products": 8}, "samples"),
        ([23, 0], {}, "samples"),
        ([12, 11], {"rate": 1e5}, "samples"),
    ],
    ids=str,
)
def test_the_axis_that_costs_less_is_taken(ranks, counts, options, wanted):
    """Layers where there are many and little to do for each; samples on slow processors, and for estimates."""
    x, y = data("mlp", torch.float64)
    found = ranks.all(2, cases.chosen, cases.shares(x, counts), cases.shares(y, counts), [options] * 2)
    for explained_shard, by_choice, by_samples, by_layers, kernels in found:
        assert explained_shard == ("layers" if "products" in options else wanted)  # which are none of exact norms
        assert torch.equal(by_choice, by_layers if wanted == "layers" else by_samples)
        assert kernels == 13


@pytest.mark.parametrize("counts", [[7], [4, 3], [0, 5, 1], [3, 0, 3, 2], [5, 4, 3, 2, 1, 0], [9] * 8], ids=str)
def test_all_pairs_are_taken_once(counts):
    n = sum(counts)
    assert sum(pairs_of(rank, counts) for rank, _ in enumerate(counts)) == n**2
    layer = LayerShape(2, 6, 5, True)
    norm = NormOverRanks(counts, 3, layer, 4, ["global"])
    assert sum(norm.flops(rank) for rank, _ in enumerate(counts)) == flops(n, 3, [layer])["tiles"]


def test_shares_of_layers():
    assert shares({"a": 5.0, "b": 3.0, "c": 3.0, "d": 1.0}, 2) == [["a", "d"], ["b", "c"]]
    assert shares({"a": 1.0}, 3) == [["a"], [], []]
