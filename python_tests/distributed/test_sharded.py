"""Several processes find what one process finds, whatever their shares of the samples are.

With AHKERNELS_ALL_SHARDS=1 every share goes with every network, and with every choice; and there are groups of 8.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from python_tests.distributed import cases
from python_tests.distributed.cases import EVERYTHING, SHARDS, data, reports, shares, statistics

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
ALL = ["forward_cka", "backward_cka", "stable_rank", "label_correlation"]
FISHER = ["fisher_stable_rank", "fisher_label_correlation"]
BOTH = ("global", "per_output")
# Of every kind of factors: one-hot, with several positions, a Jacobian, and with one position.
SOME_LAYERS = {} if EVERYTHING else {"mlp": ["0", "4"], "words": ["table", "*linear1", "*norm1", "head"]}
ALL_SHARDS = [one for of_size in SHARDS.values() for one in of_size]


def chosen(few: list, *choices: list) -> list:
    """A few combinations, or all of them."""
    return list(itertools.product(*choices)) if EVERYTHING else few


def layers_of(name: str) -> list[str] | None:
    return SOME_LAYERS.get(name)


@functools.cache
def alone(name: str, dtype: torch.dtype, options: str) -> dict[str, float]:
    return reports(None, name, dtype, *data(name, dtype), None, eval(options))


@functools.cache
def kernels_alone(name: str, outputs: Any) -> dict[str, torch.Tensor]:
    return statistics(None, name, torch.float64, *data(name, torch.float64), outputs, layers_of(name))


def close(found: dict[str, float], wanted: dict[str, float], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), key


def measured(ranks, name, dtype, counts, order, options):
    x, y = data(name, dtype)
    size = len(counts)
    same = [[one] * size for one in (name, dtype)]
    return ranks.all(size, reports, *same, shares(x, counts), shares(y, counts), [order] * size, [options] * size)


@pytest.mark.parametrize(
    ("counts", "name", "dtype"),
    chosen(
        [
            ([23], "mlp", torch.float64),
            ([23, 0], "conv", torch.float32),
            ([12, 11], "words", torch.float64),
            ([8, 8, 7], "conv", torch.float64),
            ([0, 1, 22], "words", torch.float32),
            ([6, 6, 6, 5], "mlp", torch.float32),
            ([0, 20, 0, 3], "conv", torch.float64),
            ([0, 20, 0, 3], "words", torch.float64),
        ],
        ALL_SHARDS,
        ["mlp", "conv", "words"],
        list(TOLERANCES),
    ),
    ids=str,
)
def test_reports_of_all_ranks_are_that_of_one_process(ranks, counts, name, dtype):
    options = {"centering": BOTH, "statistics": ALL + FISHER}
    wanted = alone(name, dtype, repr(options))
    found = measured(ranks, name, dtype, counts, None, options)
    for one in found:
        close(one, wanted, TOLERANCES[dtype])
        assert repr(one) == repr(found[0])


@pytest.mark.parametrize("order", ["outputs first", "parameters first", "tiles"])
@pytest.mark.parametrize("counts", ALL_SHARDS if EVERYTHING else [[0, 1, 22], [6, 6, 6, 5]], ids=str)
def test_every_order_of_contraction_is_sharded(ranks, counts, order):
    for options in ({"centering": BOTH}, {"centering": "global"}, {"centering": "per_output"}):
        wanted = alone("mlp", torch.float64, repr(options))
        for one in measured(ranks, "mlp", torch.float64, counts, order, options):
            close(one, wanted, 1e-12)


@pytest.mark.parametrize("outputs", ["trace", "sum", 2, [3, 0]], ids=str)
@pytest.mark.parametrize("counts", ALL_SHARDS if EVERYTHING else [[0, 12, 11]], ids=str)
def test_every_choice_of_outputs_is_sharded(ranks, counts, outputs):
    over_samples = [] if isinstance(outputs, list) else ["debiased_cka"]
    options = {"centering": BOTH, "outputs": outputs, "statistics": [*ALL, *over_samples]}
    wanted = alone("conv", torch.float64, repr(options))
    for one in measured(ranks, "conv", torch.float64, counts, None, options):
        close(one, wanted, 1e-12)


@pytest.mark.parametrize(
    ("counts", "name", "outputs"),
    chosen([([0, 1, 22], "mlp", "all"), ([12, 11], "words", "trace")], ALL_SHARDS, ["mlp", "words"], ["all", "trace"]),
    ids=str,
)
def test_statistics_of_kernels(ranks, counts, name, outputs):
    wanted = kernels_alone(name, outputs)
    x, y = data(name, torch.float64)
    size = len(counts)
    same = [[one] * size for one in (name, torch.float64)]
    found = ranks.all(
        size, statistics, *same, shares(x, counts), shares(y, counts), [outputs] * size, [layers_of(name)] * size
    )
    for key, value in wanted.items():
        of_ranks = [one[key] for one in found]
        if key.startswith("rows"):
            of_ranks = [torch.cat(of_ranks)]
        for one in of_ranks:
            scale = float(value.abs().max()) or 1.0
            torch.testing.assert_close(one, value, rtol=0, atol=1e-9 * scale, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
def test_blocks_close_to_constant_keep_their_digits(ranks, spread):
    counts = [70, 0, 41, 50]
    wanted = cases.near_constant(None, sum(counts), spread)
    for one in ranks.all(4, cases.near_constant, counts, [spread] * 4):
        assert one == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("counts", [[5], [2, 3], [0, 4, 1]], ids=str)
def test_wide_layers_go_through_samples(ranks, counts):
    product, numbers = cases.wide(None, 5)
    found = ranks.all(len(counts), cases.wide, counts)
    torch.testing.assert_close(torch.cat([of_rank for of_rank, _ in found]), product, rtol=1e-11, atol=1e-9)
    for _, one in found:
        torch.testing.assert_close(one, numbers, rtol=1e-11, atol=0)


@pytest.mark.parametrize("counts", [[30], [30, 31], [7, 0, 20], [10, 11, 12, 13]], ids=str)
def test_bytes_that_are_sent(ranks, counts):
    """Of factors and means to half of the other ranks; and sums over samples, whatever their number is."""
    size, o, d, m = len(counts), 3, 4, 5
    found = ranks.all(size, cases.traffic, counts, *([one] * size for one in (o, d, m)))
    of_sample = 4 * (d + o * m) + 8 * o * o
    for rank, (shifted, summed, gathered) in enumerate(found):
        sent = counts[rank] * ((size - 1) // 2)
        if size % 2 == 0:  # of those opposite to one another, the lower one sends its second half
            lower = rank < size // 2
            sent += counts[rank] - counts[rank] // 2 if lower else counts[rank]
        assert shifted == of_sample * sent
        means = 8 * (d + o * m)
        deviations = 8 * o * m * (d + 1)  # their mean
        sums = 8 * (o * o + 2 + o * o)
        assert summed == means + deviations + sums
        assert gathered == 8 * (size > 1)


def test_same_bits_from_run_to_run(ranks):
    options = {"centering": BOTH, "statistics": ALL}
    runs = [measured(ranks, "mlp", torch.float32, [5, 9, 9], None, options) for _ in range(5)]
    assert all(repr(run) == repr(runs[0]) for run in runs)


@pytest.mark.parametrize(("counts", "name"), [([12, 11], "conv"), ([7, 6, 5, 5], "words"), ([23], "mlp")], ids=str)
def test_layers_over_ranks(ranks, counts, name):
    """Each rank measures some of the layers for all samples: the very numbers of one process."""
    options = {"centering": BOTH, "statistics": ALL}
    wanted = alone(name, torch.float64, repr(options))
    for one in measured(ranks, name, torch.float64, counts, None, options | {"shard": "layers"}):
        close(one, wanted, 1e-14)


@pytest.mark.parametrize("shard", ["samples", "layers"])
def test_a_tracker_writes_on_rank_0_alone(ranks, tmp_path, shard):
    x, y = data("mlp", torch.float64)
    counts = [8, 7, 8]
    found = ranks.all(3, cases.tracked, shares(x, counts), shares(y, counts), [tmp_path] * 3, [shard] * 3)
    assert all(torch.equal(one["cka"], found[0]["cka"]) and one["steps"] == [0, 1] for one in found)
    assert [one["written"] for one in found] == [True, False, False]
    assert [one["logged"] for one in found] == [8, 0, 0]


def test_estimates_do_not_depend_on_the_shards(ranks):
    options = {"products": 20}
    wanted = alone("mlp", torch.float64, repr(options))
    for one in measured(ranks, "mlp", torch.float64, [7, 0, 16], None, options):
        close(one, wanted, 1e-9)


def test_more_samples_than_a_panel(ranks):
    """With several panels in a shard, a ragged last one, and the tie of an even number of ranks."""
    with_many = [[one] * 4 for one in (torch.float32,)]
    found = ranks.all(4, cases.of_many, *with_many, [131, 97, 48, 60])
    alone_found = cases.of_many(None, torch.float32, 131 + 97 + 48 + 60)
    for one in found:
        close(one, alone_found, 1e-5)
