"""The specification: tangent kernels and their alignment in plain fp64, as the formulas are written."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def factors(
    n: int, s: int, o: int, d: int, m: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random factors [n, s, d] and [n, s, o, m]."""
    generator = torch.Generator().manual_seed(seed)
    forward = torch.randn(n, s, d, generator=generator, dtype=torch.float64)
    backward = torch.randn(n, s, o, m, generator=generator, dtype=torch.float64)
    return forward.to(dtype), backward.to(dtype)


def row_means(k: Tensor, o: int) -> Tensor:
    """Mean of each row of K, [n, o]."""
    return k.mean(1).view(-1, o).contiguous()


def kernel(forward: Tensor, backward: Tensor, bias: float) -> Tensor:
    """K [n*o, n*o] of factors [n, s, d] and [n, s, o, m]."""
    a, g = forward.double(), backward.double()
    n, s, o, _ = g.shape
    k = torch.zeros(n, o, n, o, dtype=torch.float64)
    for first in range(s):
        for second in range(first + 1):
            p = a[:, first] @ a[:, second].T + bias
            pair = p[:, None, :, None] * torch.einsum("xim,yjm->xiyj", g[:, first], g[:, second])
            k += pair if first == second else pair + pair.permute(2, 3, 0, 1)
    return k.reshape(n * o, n * o)


def forward_gram(forward: Tensor, bias: float) -> Tensor:
    """P [n, n] of a factor [n, s, d]."""
    n, s, _ = forward.shape
    return kernel(forward, torch.ones(n, s, 1, 1), bias)


def backward_gram(backward: Tensor) -> Tensor:
    """Q [n*o, n*o] of a factor [n, s, o, m]."""
    n, s, *_ = backward.shape
    return kernel(torch.ones(n, s, 1), backward, 0.0)


def centered(k: Tensor, centering: str | None = "global", o: int = 1) -> Tensor:
    """C K C with C = I - 11^T/size, or per output with C = (I_n - 11^T/n) (x) I_o; K for None."""
    if centering is None:
        return k
    if centering == "global":
        k = k - k.mean(0)
        return k - k.mean(1, keepdim=True)
    blocks = k.reshape(len(k) // o, o, -1, o)
    blocks = blocks - blocks.mean(0)
    return (blocks - blocks.mean(2, keepdim=True)).reshape(k.shape)


def cka(k: Tensor, other: Tensor, centering: str = "global", o: int = 1) -> float:
    """Equation 6, and the same per output."""
    kc, oc = centered(k, centering, o), centered(other, centering, o)
    return float((kc * oc).sum() / kc.norm() / oc.norm())


def centered_features(features: Tensor, centering: str = "global") -> Tensor:
    """Tangent features [n, o, P], or targets [n, o], less their mean over samples and outputs or over samples."""
    return features - (features.mean((0, 1)) if centering == "global" else features.mean(0))


def cka_of_features(features: Tensor, targets: Tensor, centering: str = "global") -> float:
    """Equation 7 from tangent features [n, o, P] and targets [n, o], centered before anything is multiplied."""
    psi = centered_features(features, centering).flatten(0, 1)
    labels = centered_features(targets, centering).flatten()
    inner = (psi.T @ labels).square().sum()
    return float(inner / (psi @ psi.T).norm() / labels.square().sum())


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Parameters of each module that has some; those of a parametrisation belong to the module that has it."""
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        path = name.rpartition(".")[0].partition(".parametrizations")[0]
        found.setdefault(path or "(root)", []).append(name)
    return found


def jacobians(model: nn.Module, x: Tensor, layers: dict[str, list[str]] | None = None) -> dict[str, Tensor]:
    """J [n, o, P] of the outputs with respect to the parameters of each layer, by torch.func.

    Layers are name -> parameters; by default each module that has some.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    layers = layers_of(model) if layers is None else layers

    def output(own: dict[str, Tensor], rest: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, {**rest, **own}, (sample.unsqueeze(0),))[0]

    found: dict[str, Tensor] = {}
    for layer, names in layers.items():
        own = {name: parameters[name] for name in names}
        rest = {name: value for name, value in parameters.items() if name not in own}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            try:
                parts = torch.func.vmap(torch.func.jacrev(output), (None, None, 0))(own, rest, x)
            except RuntimeError:  # torch cannot batch PReLU
                rows = [
                    torch.autograd.functional.jacobian(
                        lambda *values: output(dict(zip(own, values, strict=True)), rest, sample),  # noqa: B023
                        tuple(own.values()),
                    )
                    for sample in x
                ]
                parts = {name: torch.stack(column) for name, column in zip(own, zip(*rows, strict=True), strict=True)}
        found[layer] = torch.cat([parts[name].reshape(*parts[name].shape[:2], -1) for name in names], 2)
    return found


def kernels_of_outputs(jacobian: Tensor, outputs: object) -> Tensor:
    """K of a Jacobian [n, o, P] for each meaning of `outputs`."""
    if outputs == "trace":
        return torch.einsum("xip,yip->xy", jacobian, jacobian)
    if outputs == "sum":
        total = jacobian.sum(1)
        return total @ total.T
    if outputs != "all":
        jacobian = jacobian[:, [outputs] if isinstance(outputs, int) else list(outputs)]  # type: ignore[call-overload]
    rows = jacobian.flatten(0, 1)
    return rows @ rows.T


def label_kernel(y: Tensor, total: int, outputs: object) -> Tensor:
    """Y Y^T with rows as those of the kernel for each meaning of `outputs`."""
    targets = torch.nn.functional.one_hot(y, total).double() if y.dim() == 1 else y.double()
    if outputs in ("trace", "sum"):
        return targets @ targets.T
    if outputs != "all":
        targets = targets[:, [outputs] if isinstance(outputs, int) else list(outputs)]  # type: ignore[call-overload]
    vector = targets.flatten()
    return torch.outer(vector, vector)
