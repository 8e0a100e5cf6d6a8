"""What goes with the numbers of a report over ranks: its certificate, layers that some samples reach, and the bar."""

from __future__ import annotations

import contextlib
import io
import warnings
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

import ahkernels as ah
from ahkernels import kernel as kernel_module
from ahkernels.certificate import Certificate
from ahkernels.distributed import layers

X, Y = torch.linspace(-1, 1, 60).sin().reshape(20, 3), torch.arange(20) % 4


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4))


class Gated(nn.Module):
    """Its second layer is called for positive inputs alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        positive, out = x[:, 0] > 0, self.first(x)
        return out + positive[:, None] * self.second(x) if positive.any() else out


def certificates(group, x, y):
    """The certificate of all ranks, and that of the samples of this rank."""
    found = [ah.layerwise_alignment(network(), x, y, process_group=one).certificate for one in (group, None)]
    return [one.differences for one in found]


def warned_of(group, x, y):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = ah.layerwise_alignment(Gated(), x, y, process_group=group)
    return [str(one.message) for one in caught], report["second"]


def shown(group, x, y, shard):
    with contextlib.redirect_stderr(io.StringIO()) as text:
        ah.layerwise_alignment(network(), x, y, process_group=group, shard=shard, progress=True)
    return "layers" in text.getvalue()


def sum_of_blocks(group, x):
    """In steps of some outputs, by the number of samples of all ranks."""
    kernel = ah.tangent_kernels(network(), x, layers="0", process_group=group)["0"]
    with mock.patch.object(kernel_module, "_NUMBERS_JOINED", 2 * 20 * 9):
        return float(kernel.sum_of_diagonal_blocks())


def shares(tensor, count):
    return [tensor[:count], tensor[count:]]


def test_the_certificate_has_the_largest_difference_of_any_rank(ranks):
    found = ranks.all(2, certificates, shares(X, 4), shares(Y, 4))
    alone = [of_rank for _, of_rank in found]
    assert any(alone[1][name] > alone[0][name] for name in alone[0])
    largest = {name: pytest.approx(max(one[name] for one in alone), rel=1e-6) for name in alone[0]}
    assert [together for together, _ in found] == [largest] * 2


def test_the_oldest_certificate_of_the_ranks_counts():
    told = [
        {
            "statistics": {name: {layer: 0.5} for name in ("cka", "centered_norm", "trace")},
            "certificate": Certificate({layer: 1e-7}, calls_ago).to_dict(),
        }
        for layer, calls_ago in (("fc1", 2), ("fc2", 5))
    ]
    groups = {"fc1": ["fc1"], "fc2": ["fc2"]}
    outputs = SimpleNamespace(plain_spec="all")
    plan = SimpleNamespace(groups=groups, outputs=outputs, precision="highest", kinds=["Linear", "Linear"])
    assert layers._merged(plan, 20, "global", told).certificate == Certificate({"fc1": 1e-7, "fc2": 1e-7}, 5)


def test_a_layer_that_the_samples_of_one_rank_reach_is_reached(ranks):
    x = X[X[:, 0].argsort()]
    negative = int((x[:, 0] <= 0).sum())
    for messages, alignment in ranks.all(2, warned_of, shares(x, negative), shares(Y, negative)):
        assert messages == []
        assert alignment == pytest.approx(ah.layerwise_alignment(Gated(), x, Y)["second"], rel=1e-5)


@pytest.mark.parametrize("shard", ["samples", "layers"])
def test_rank_0_alone_shows_a_bar(ranks, shard):
    assert ranks.all(2, shown, shares(X, 12), shares(Y, 12), [shard] * 2) == [True, False]


def test_all_ranks_take_the_same_steps_over_the_outputs(ranks):
    expected = sum_of_blocks(None, X)
    assert ranks.all(2, sum_of_blocks, shares(X, 3)) == [pytest.approx(expected, rel=1e-5)] * 2
