"""All layers of a bias-free ReLU MLP in plain torch.

There are two ways to batch the o cotangents through the network, by hand and by autograd, and a benchmark takes the
faster one; and everything in one torch.compile, which wins where calls are short.
"""

from collections.abc import Callable

import torch

from benchmarks.common import plain_layer

Factors = list[tuple[torch.Tensor, torch.Tensor]]  # a [n, N_in] and g [n, o, N_out] of every layer


@torch.no_grad()
def by_hand(model: torch.nn.Sequential, x: torch.Tensor, first: int = 0) -> Factors:
    """Forward keeping the activations, then the cotangents through transposed weights and masks to layer `first`."""
    weights = [layer.weight for layer in model if isinstance(layer, torch.nn.Linear)]
    inputs, h = [], x
    for weight in weights:
        inputs.append(h)
        h = (h @ weight.T).relu()
    g = torch.eye(len(weights[-1]), dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    backward = [g]
    for weight, a in zip(weights[:first:-1], inputs[:first:-1], strict=True):
        g = (g @ weight).mul_((a > 0).unsqueeze(1))
        backward.append(g)
    return list(zip(inputs[first:], reversed(backward), strict=True))


def by_autograd(model: torch.nn.Sequential, x: torch.Tensor) -> Factors:
    """One torch.autograd.grad with batched cotangents, asked for the preactivations only."""
    inputs, outputs, h = [], [], x
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            inputs.append(h.detach())
            h = torch.nn.functional.linear(h, layer.weight.detach())
            outputs.append(h if h.requires_grad else h.requires_grad_())
        else:
            h = layer(h)
    n, o = h.shape
    cotangents = torch.eye(o, dtype=x.dtype, device=x.device)[:, None].expand(o, n, o)
    gradients = torch.autograd.grad(h, outputs, cotangents, is_grads_batched=True)  # [o, n, N_out] each
    return [(a, g.transpose(0, 1)) for a, g in zip(inputs, gradients, strict=True)]


def kernels(
    model: torch.nn.Sequential, x: torch.Tensor, layer: int | None = None, summed: bool = False
) -> torch.Tensor:
    """K of every layer [L, n*o, n*o], their sum [n*o, n*o], or that of one layer [n*o, n*o]."""
    if layer is not None:
        return plain_layer.dense(*by_hand(model, x, layer)[0])
    factors = by_hand(model, x)
    n, o, _ = factors[0][1].shape
    out = x.new_empty(2 if summed else len(factors), n * o, n * o)
    if not summed:
        for k, (a, g) in zip(out, factors, strict=True):
            plain_layer.dense(a, g, k)
        return out
    plain_layer.dense(*factors[0], out[0])
    for a, g in factors[1:]:
        out[0] += plain_layer.dense(a, g, out[1])
    return out[0]


def layerwise(
    capture: Callable[[torch.nn.Sequential, torch.Tensor], Factors],
    moments: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float],
    model: torch.nn.Sequential,
    x: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """Alignment of every layer, fp64 [L]; y one-hot [n, o]."""
    return torch.tensor([moments(a, g, y) for a, g in capture(model, x)], dtype=torch.float64)


def compiled(model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The whole job, with every K in memory, as one compiled graph for these shapes."""
    weights = [weight.detach() for weight in model.parameters()]
    graph = torch.compile(_all_layers, dynamic=False)
    return lambda: graph(weights, x, y)


def _all_layers(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    inputs, h = [], x
    for weight in weights:
        inputs.append(h)
        h = (h @ weight.T).relu()
    n, o = y.shape
    target, alignments = y - y.mean(), []
    g = torch.eye(o, dtype=x.dtype, device=x.device).expand(n, o, o)
    for weight, a in zip(reversed(weights), reversed(inputs), strict=True):
        means = (g * (a @ (g.sum(1).T @ a / (n * o)).T)[:, None]).sum(-1)
        moment = (g * target[:, :, None]).sum(1).T @ a
        rows = g.transpose(0, 1).reshape(o * n, -1)
        k = (rows @ rows.T).view(o, n, o, n) * (a @ a.T)[:, None]
        centered = k - (means.T - means.mean())[:, :, None, None] - means.T
        norm = centered.square().sum(-1).sum().sqrt()
        alignments.append(moment.square().sum() / (target.square().sum() * norm))
        g = (g @ weight) * (a > 0)[:, None]  # for the first layer unused, and dropped by the compiler
    return torch.stack(alignments[::-1]).double()


def compiled_kernels(
    model: torch.nn.Sequential, x: torch.Tensor, o: int, layer: int | None = None, summed: bool = False
) -> Callable[[], torch.Tensor]:
    """`kernels` as one compiled graph for these shapes."""
    weights = [weight.detach() for weight in model.parameters()]

    def all_of_it(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        inputs, h = [], x
        for weight in weights:
            inputs.append(h)
            h = (h @ weight.T).relu()
        g = torch.eye(o, dtype=x.dtype, device=x.device).expand(len(x), o, o)
        found = []
        for index in reversed(range(len(weights))):
            a, rows = inputs[index], g.reshape(len(x) * o, -1)
            k = (rows @ rows.T).view(len(x), o, len(x), o) * (a @ a.T)[:, None, :, None]
            found.append(k.view(len(x) * o, len(x) * o))
            if index == layer:
                return found[-1]
            if index:
                g = (g @ weights[index]) * (a > 0)[:, None]
        return sum(found) if summed else torch.stack(found[::-1])

    graph = torch.compile(all_of_it, dynamic=False)
    return lambda: graph(weights, x)
