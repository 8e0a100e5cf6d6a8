"""Where a measurement waits for a device, and how much it launches there, on a device that is not there."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

import ahkernels as ah
from benchmarks import launches
from benchmarks.common.pretended_device import DEVICE, PretendedDevice, devices_of_updates

N, OUTPUTS = 12, 4


@pytest.fixture
def device():
    found = PretendedDevice()
    with found.in_use():
        yield found


# ---- the pretended device

WAITS = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[0, 0]),
    "bool": lambda x: bool(x[0, 0]),
    "index": lambda x: [0, 1, 2][x[0, 0].long()],
    "if": lambda x: 1 if x.sum() > 0 else 2,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to cpu by keyword": lambda x: x.to(device="cpu", dtype=torch.float64),
    "to like one of the host": lambda x: x.to(torch.ones(1, dtype=torch.float64)),
    "to the device": lambda x: torch.ones(2).to(x.device),
    "to like one of the device": lambda x: torch.ones(2).to(x),
    "copy to the host": lambda x: torch.empty(2, 2).copy_(x),
    "copy from the host": lambda x: x.copy_(torch.empty(2, 2)),
    "numbers of Python": lambda x: torch.tensor([1.0], device=x.device),
    "more of them": lambda x: x.new_tensor([1.0]),
    "numbers as a tensor": lambda x: torch.as_tensor(1.0, device=x.device),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: torch.unique(x),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "mask": lambda x: x[x > 0],
    "list as an index": lambda x: x[[1, 0]],
    "index of the host": lambda x: x[torch.tensor([1])],
    "written at a list": lambda x: x.__setitem__([0], 1.0),
    "eigenvalues": lambda x: torch.linalg.eigvalsh(x),
    "in the backward pass": lambda x: _squares(x).sum().backward(),
}


class _Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.max().item()


def _squares(x):
    return _Squares.apply(x.requires_grad_())


@pytest.mark.parametrize("what", WAITS)
def test_a_wait_is_seen(device, what):
    x = torch.eye(2, device=DEVICE)
    assert not device.waits
    WAITS[what](x)
    assert device.waits.total() >= 1


def test_what_does_not_wait(device):
    x = torch.ones(3, 2, device=DEVICE)
    y = (x @ x.T + 1.0).to(torch.float64)[:2]
    y[0] = 2.0
    z = torch.cat((y, torch.zeros_like(y), y.new_ones(2, 3)))
    assert all(one.device == DEVICE for one in (x, y, z, z.sum(), torch.func.vmap(torch.sum)(z)))
    assert torch.ones(2).device == torch.empty(2, device="cpu").device == torch.device("cpu")
    assert not device.waits
    assert device.launches.total() == 9  # mm, add, to, fill, zeros_like, new_ones, cat and two sums


def test_tensors_of_both_are_refused(device):
    x = torch.ones(2, 2, device=DEVICE)
    with pytest.raises(RuntimeError, match="mm: expected tensors on the device, got one of the host"):
        x @ torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="numpy of a tensor on the device"):
        x.numpy()
    assert (x + torch.tensor(1.0)).device == DEVICE  # a number


# ---- measurements


def mlp(depth: int) -> nn.Sequential:
    return networks.mlp(depth, 24, 6, OUTPUTS, bias=True)


def measured(model: nn.Module, options: dict, steps: int = 2) -> list[PretendedDevice]:
    """The devices of a first measurement and of later ones."""
    x = torch.randn(N, 6, dtype=next(model.parameters()).dtype)
    tracker = ah.AlignmentTracker(model, x, torch.arange(N) % model(x).shape[1], **options)
    return devices_of_updates(tracker, steps)


@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({}, 11, 4),
        ({"centering": ("global", "per_output")}, 12, 5),
        ({"outputs": "trace"}, 11, 4),
        ({"outputs": [0, 2], "statistics": ["forward_cka", "backward_cka"]}, 14, 6),
        ({"statistics": ["debiased_cka"], "centering": "per_output"}, 11, 4),
    ],
    ids=str,
)
def test_no_layer_waits(options, first, later):
    for depth in (2, 4):
        waits = [one.waits for one in measured(mlp(depth), options)]
        assert waits[0].total() <= first, waits[0]
        assert waits[1].total() <= later, waits[1]


def test_no_layer_waits_in_float64():
    waits = [one.waits.total() for one in measured(mlp(4).double(), {})]
    assert waits <= [11, 4]


@pytest.mark.parametrize(
    ("options", "of_layer"),
    [
        ({"products": 6}, 3),
        ({"statistics": ["stable_rank", "label_correlation"]}, 7),
        ({"statistics": ["fisher_stable_rank"]}, 7),
    ],
    ids=str,
)
def test_waits_that_each_layer_adds(options, of_layer):
    few, many = (measured(mlp(depth), options | {"certify": 0}, 1)[0].waits.total() for depth in (1, 2))
    assert many - few == of_layer


@pytest.mark.parametrize("name", ["in-place", "shared", "norms", "convolutional", "tokens", "volume"])
def test_networks_of_other_kinds(name):
    """Nothing mixes tensors of device and host, and nothing waits for each layer."""
    first, later = measured(networks.all_networks()[name], {"centering": ("global", "per_output")})
    assert later.waits.total() <= 5, later.waits
    assert first.waits.total() <= 12 + sum(count for where, count in first.waits.items() if "_norms" in where)


@pytest.mark.parametrize("order", ["outputs first", "parameters first"])
def test_other_orders_of_contraction(order, monkeypatch):
    """Which is best depends on numbers: a layer waits for its scales, and whether its digits are enough."""
    monkeypatch.setattr("ahkernels.contraction.best_order.order_of", lambda *_, **__: order)
    few, many = (measured(mlp(depth), {"certify": 0}, 1)[0].waits.total() for depth in (2, 4))
    assert 0 < many - few <= 2 * 2


def test_launches():
    few, many = (measured(mlp(depth), {"certify": 0}, 1)[0].launches.total() for depth in (2, 4))
    assert many - few <= 2 * 48


def test_benchmark_counts(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["launches", "--quick"])
    launches.main()
    assert "later  global" in capsys.readouterr().out
