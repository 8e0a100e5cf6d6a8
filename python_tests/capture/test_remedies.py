"""Every refusal of a model names the remedy, with the line to write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ahkernels as ah

X = torch.randn(6, 5)


class Network(nn.Module):
    """Two layers, with a forward that a test gives."""

    def __init__(self, forward: Callable[[Network, Tensor], object]) -> None:
        super().__init__()
        self.first, self.last, self.run = nn.Linear(5, 4), nn.Linear(4, 3), forward

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))


def within_no_grad(model: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = model.first(x)
    return model.last(h)


def in_place(model: Network, x: Tensor) -> Tensor:
    x += 1
    return model.last(model.hidden(x))


def with_hook(model: Network, x: Tensor) -> Tensor:
    model.last.weight.extra = 3
    return model.last(model.hidden(x))


FORWARDS = {
    "write output=lambda returned: returned[0]": lambda model, x: (model.last(model.hidden(x)), x),
    "write output=lambda returned: returned[...]": lambda model, x: model.last(model.hidden(x)).unsqueeze(1),
    "write .flatten(1) for .flatten()": lambda model, x: model.last(model.hidden(x)).flatten(),
    "or .mean(1) for .mean()": lambda model, x: model.last(model.hidden(x)).mean(),
    "before .argmax() or .round()": lambda model, x: model.last(model.hidden(x)).argmax(1, keepdim=True),
    "or .real of what is complex": lambda model, x: torch.complex(model.last(model.hidden(x)), x[:, :3]),
    "take these out of forward": lambda model, x: model.last(model.hidden(x)).detach(),
    "write layers=[...] without 'first'": within_no_grad,
    "write .clone() before the operation, or inplace=False": in_place,
    "change it once, before the measurement": with_hook,
    "write batch_first=True": lambda model, x: model.last(model.hidden(x) - model.hidden(x).mean(0) * x[:, :1]),
    "call model.eval() first": lambda model, x: model.last(model.hidden(x)) + torch.rand(len(x), 1),
}


@pytest.mark.parametrize("remedy", list(FORWARDS))
def test_forwards(remedy):
    with pytest.raises(ValueError, match=r"^(model|output): expected") as caught:
        ah.tangent_kernels(Network(FORWARDS[remedy]), X)
    assert remedy in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("remedy", "model", "x"),
    [
        ("; write model(x) once before", nn.LazyLinear(3), X),
        ("; write nn.ModuleList(...) for a list of modules", nn.Tanh(), X),
        ("; write layers=[...] without '(root)'", nn.Linear(5, 3, dtype=torch.complex64), X),
        ("; call model.eval() first", nn.Sequential(nn.Linear(5, 3), nn.Dropout()), X),
        ("; write x.to('meta')", nn.Linear(5, 3, device="meta"), X),
        ("; write x.to(torch.float32)", nn.Linear(5, 3), X.double()),
        ("x[x.flatten(1).isfinite().all(1)]", nn.Linear(5, 3), X / 0),
    ],
)
def test_modules_and_inputs(remedy, model, x):
    with pytest.raises(ValueError) as caught:
        ah.tangent_kernels(model, x)
    assert remedy in str(caught.value)
