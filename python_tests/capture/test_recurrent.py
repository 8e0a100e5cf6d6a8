"""The rules for recurrent modules in every way that their arguments allow, and what of them takes the fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from against_jacobians import check
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ahkernels as ah

KINDS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "layers": {"num_layers": 3},
    "directions": {"bidirectional": True},
    "layers and directions": {"num_layers": 2, "bidirectional": True},
    "layers without bias": {"num_layers": 2, "bias": False},
    "samples second": {"batch_first": False, "num_layers": 2},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, 12, dtype=torch.float64)


class Recurrent(nn.Module):
    """Three outputs from what `read` takes of the outputs of a recurrent module."""

    def __init__(self, cells: nn.Module, read: Callable[..., Tensor], given: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.cells, self.read, self.given = cells.double(), read, given
        self.embed, self.last = nn.Linear(3, 3), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x.view(-1, 4, 3)))
        first = getattr(self.cells, "batch_first", True)
        h = h if first else h.transpose(0, 1)
        outputs = self.cells(h) if self.given is None else self.cells(h, self.given(self.cells, h))
        read = self.read(*outputs)
        read = read if first or read.dim() < 3 or len(read) == len(x) else read.transpose(0, 1)
        return self.last(read.sin().flatten(1))


def recurrent(cells: nn.Module, read: Callable[..., Tensor], given: Callable[..., Any] | None = None) -> Recurrent:
    model = Recurrent(cells, read, given).double()
    model(inputs())  # which makes the last layer
    return model


def output(output: Tensor, state: Any) -> Tensor:
    return output


def last_output(output: Tensor, state: Any) -> Tensor:
    return output[:, -1]


def last_state(output: Tensor, state: Any) -> Tensor:
    return state[-1]


def all_states(output: Tensor, state: Any) -> Tensor:
    h, c = state if isinstance(state, tuple) else (state, state.cos())
    return torch.cat((h, c), 2).transpose(0, 1)


def everything(output: Tensor, state: Any) -> Tensor:
    return torch.cat((output.flatten(1), all_states(output, state).flatten(1)), 1)


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("kind", list(KINDS))
def test_options(kind, options):
    cells = KINDS[kind](3, 4, **{"batch_first": True} | OPTIONS[options])
    assert check(recurrent(cells, output), inputs()) == set()
    assert check(recurrent(cells, all_states), inputs()) == set()


@pytest.mark.parametrize("read", [last_output, everything])
@pytest.mark.parametrize("outputs", ["trace", "sum", 1])
def test_what_is_read(read, outputs):
    for kind in KINDS.values():
        cells = kind(3, 4, num_layers=2, batch_first=True)
        assert check(recurrent(cells, read), inputs(), outputs=outputs) == set()


def test_the_last_state_alone():
    for kind in (nn.RNN, nn.GRU):
        assert check(recurrent(kind(3, 4, batch_first=True), last_state), inputs()) == set()


def test_relu():
    cells = nn.RNN(3, 4, nonlinearity="relu", num_layers=2, batch_first=True)
    assert check(recurrent(cells, output), inputs()) == set()


def first_state(cells: nn.RNNBase, h: Tensor) -> Any:
    """States that depend on the sample."""
    directions = cells.num_layers * (2 if cells.bidirectional else 1)
    h = h if cells.batch_first else h.transpose(0, 1)
    state = torch.linspace(-1, 1, 4 * directions, dtype=h.dtype).view(directions, 1, 4) * h.mean((1, 2))[:, None]
    return (state, state.cos()) if isinstance(cells, nn.LSTM) else state


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_given_states(kind, batch_first):
    cells = KINDS[kind](3, 4, num_layers=2, bidirectional=True, batch_first=batch_first)
    assert check(recurrent(cells, output, first_state), inputs()) == set()
    assert check(recurrent(cells, all_states, first_state), inputs()) == set()


class Steps(nn.Module):
    """A cell that takes some steps; it starts from a state that is given or not."""

    def __init__(self, kind: str, *, given: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.cell, self.given, self.last = CELLS[kind](3, 4, bias=bias), given, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :4].sin()
        state: Any = (first, first.cos()) if isinstance(self.cell, nn.LSTMCell) else first
        state = state if self.given else None
        for step in x.view(-1, 4, 3).unbind(1):
            state = self.cell(step, state)
        return self.last(sum(state, start=x.new_zeros(())) if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", list(CELLS))
@pytest.mark.parametrize("options", [{}, {"given": False}, {"bias": False}], ids=["given", "not given", "no bias"])
def test_cells(kind, options):
    assert check(Steps(kind, **options), inputs()) == set()


class Twice(nn.Module):
    """A decoder that starts from the state of the same network as encoder, and a state that is learned."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cells, self.last = KINDS[kind](3, 4, batch_first=True), nn.Linear(4, 3)
        self.start = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = x.view(-1, 4, 3)
        state: Any = self.start.expand(1, len(x), 4).contiguous()
        _, state = self.cells(h, (state, state) if isinstance(self.cells, nn.LSTM) else state)
        return self.last(self.cells(h.flip(1), state)[0].sum(1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_states_that_are_handed_on(kind):
    assert check(Twice(kind), inputs()) == {"(root)"}


class Changed(nn.Module):
    """What a model may do with the outputs: views, changes in place, checkpoints, and hooks."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.cells, self.last, self.way = nn.LSTM(3, 4, num_layers=2, batch_first=way != "view"), nn.Linear(4, 3), way
        if way == "hook":
            self.cells.register_forward_hook(lambda module, args, outputs: (2 * outputs[0], outputs[1]))

    def forward(self, x: Tensor) -> Tensor:
        h = x.view(-1, 4, 3)
        if self.way == "view":
            z = self.cells(h.transpose(0, 1))[0].view(-1, 4)  # of what lies in memory step by step
            return self.last(z.view(4, -1, 4).sum(0))
        if self.way == "checkpoint":
            z, (state, _) = checkpoint(self.cells, h, use_reentrant=False)
        else:
            z, (state, _) = self.cells(h)
        if self.way == "in place":
            z.mul_(2)
            state[0] += z[:, 0].cos()
        return self.last(z.sum(1).sin() + state.sum(0))


@pytest.mark.parametrize("way", ["plain", "view", "in place", "checkpoint", "hook"])
def test_what_becomes_of_the_outputs(way):
    assert check(Changed(way), inputs()) == set()


class Elsewhere(nn.Module):
    """A network whose weights act elsewhere, too: in the model, or in what it takes as its state."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.cells, self.last, self.where = nn.RNN(4, 4, batch_first=True), nn.Linear(4, 3), where
        if where == "tied":
            self.last.weight = nn.Parameter(torch.randn(3, 4))
            self.other = nn.RNN(4, 4, batch_first=True)
            self.other.weight_hh_l0 = self.cells.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        h = x.view(-1, 3, 4)
        state = h[:, 0] @ self.cells.weight_hh_l0 if self.where == "before" else h[:, 0]
        z, _ = self.cells(h, state.unsqueeze(0).contiguous())
        if self.where == "tied":
            z, _ = self.other(z)
        return self.last(z[:, -1] @ self.cells.weight_ih_l0 if self.where == "after" else z[:, -1])


@pytest.mark.parametrize("where", ["before", "after", "tied"])
def test_weights_that_act_elsewhere(where):
    fallback = {"cells", "other"} if where == "tied" else {"cells"}
    x = inputs()
    assert {one.layer for one in ah.explain(Elsewhere(where).double(), x) if one.route == "fallback"} == fallback
    assert check(Elsewhere(where), x) == fallback


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_projections_take_the_fallback():
    assert check(recurrent(nn.LSTM(3, 4, proj_size=2, batch_first=True), output), inputs()) == {"cells"}


def test_normed_weights():
    cells = nn.utils.parametrizations.weight_norm(nn.GRUCell(3, 4), "weight_hh")
    model = Steps("gru")
    model.cell = cells
    assert check(model, inputs()) == set()


class Forgotten(nn.Module):
    """The batch_first that was forgotten."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cells, self.last = KINDS[kind](3, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x.view(-1, 4, 3))[0].flatten(1))


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize("kind", list(KINDS))
def test_samples_that_are_taken_for_time_are_refused(kind, n):
    """Also where there are as many of them as steps."""
    with pytest.raises(ValueError, match=r"samples act on one another|depend on their own sample"):
        ah.tangent_kernels(Forgotten(kind).double(), inputs(n))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), 4)
        packed = nn.utils.rnn.pack_padded_sequence(x.view(-1, 4, 3), lengths, batch_first=True)
        return self.last(self.cells(packed)[1][-1])


def test_packed_sequences_take_the_fallback():
    model, x = Packed().double(), inputs()
    assert [one.route for one in ah.explain(model, x)] == ["fallback", "factors"]
    assert ah.tangent_kernels(model, x)["cells"].trace() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", list(KINDS))
def test_single_and_half_precision(kind, dtype):
    """torch has other kernels for these, whose results are rounded in another way."""
    model = recurrent(KINDS[kind](3, 8, num_layers=2, batch_first=True), last_output)
    model, x = model.to(dtype), torch.randn(6, 12, dtype=dtype)
    exact = ah.tangent_kernels(model.double(), x.double())
    for name, kernel in ah.tangent_kernels(model.to(dtype), x, certify=1).items():
        expected = exact[name].to_dense()
        distance = (kernel.to_dense().double() - expected).norm() / expected.norm()
        assert distance < (1e-5 if dtype == torch.float32 else 0.1)
    assert all(one.route != "fallback" for one in ah.explain(model, x))


def test_grams_and_chunks():
    """Whatever the budget, the factors of layers and directions are the same."""
    model, x = recurrent(nn.GRU(3, 4, bidirectional=True, batch_first=True), output).double(), inputs(40)
    whole = ah.tangent_kernels(model, x, keep_factors=True)["cells"]
    cut = ah.tangent_kernels(model, x, keep_factors=True, memory_budget=1 << 16)["cells"]
    assert torch.allclose(whole.to_dense(), cut.to_dense(), rtol=1e-12)
    assert torch.allclose(whole.forward_gram().to_dense(), cut.forward_gram().to_dense(), rtol=1e-12)
    j = torch.eye(whole.shape[0], dtype=torch.float64)
    assert torch.allclose(whole.jvp(whole.vjp(j)), whole.to_dense(), rtol=1e-10)
