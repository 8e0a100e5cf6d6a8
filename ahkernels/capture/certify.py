"""The certificate: what was captured of a layer is held against autograd in the very same call of the model.

For random weights v on the outputs, the squared norm of J^T v, with the Jacobian J of a layer, is v^T K v from what was
captured, and it is the squared norm of autograd's own gradient of <v, f> by the layer's parameters. A fault in what was
captured changes one and not the other: parameters that act in another way than the layer's rule knows, or a forward
that is not the module's own. A bias is compared on its own, since it would hide behind its weight. One v is centered
for each output, since the mean gradient of a near-constant network would hide everything else; another one is not,
since centering hides constants. The first is zero on a random half of the samples, and the second on all others. The
gradients of samples without weight must be zero at the output of every layer, or else samples act on one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ahkernels.capture.call import Call
from ahkernels.capture.plan import PlannedLayer
from ahkernels.capture.selection import Layer

# How far two squared norms may be apart, relative to their size, for the coarsest dtype of a layer.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# The rounding of a sum, in units of the dtype's for the sizes of the addends: that of each product, which adds up at
# random, and that of the running sum, which is kept in fp32 at least.
_ROUNDING_OF_PRODUCTS, _ROUNDING = 2, 4
_ANOTHER_SCALE = 1.37  # that of v where autograd's own rounding is looked for; no power of two, which would show none
# Where autograd's own gradients are apart by so much, ours may be apart by this many times as much.
_TIMES_NOISE = 3
# Norms from sums of fp32 squares, which neither vanish nor overflow.
_SAFE_NORMS = (1e-15, 1e15)


class Reference:
    """Autograd's side of the certificate for one call.

    Args:
        call: A call of the model, whose graph is kept.
        layers: The layers.
        recorded: Those whose uses were recorded, with samples first.
        cotangents: The cotangents [r, o] of the capture.
        gradient_bytes: How large the gradients of parameters may be that are held at once.

    Attributes:
        active: The samples with weight, for each v.
        weights: v for the active samples [k, r], for each cotangent.
        v: Both v [n, o].
        norms: For each parameter, the norms of the gradients of <v, f> for both v.
        numbers: The length of each parameter.
        dtypes: The dtype of each parameter.
        mixed: The layers at whose output the gradients of samples without weight are not zero.
    """

    def __init__(
        self, call: Call, layers: Sequence[Layer], recorded: Set[str], cotangents: Tensor, gradient_bytes: int
    ) -> None:
        n, device = len(call.output), call.output.device
        generator = torch.Generator("cpu").manual_seed(n)
        order = torch.randperm(n, generator=generator, device="cpu")
        halves = [part.sort().values.to(device) for part in (order[n // 2 :], order[: n // 2])]
        self.active = [halves[0], halves[1] if n > 1 else halves[0]]
        self.weights = [
            _weights(len(active), len(cotangents), generator, centered=which == 0).to(call.output)
            for which, active in enumerate(self.active)
        ]
        self.v = [call.output.new_zeros(n, cotangents.shape[1]) for _ in (0, 1)]
        for v, active, weights in zip(self.v, self.active, self.weights, strict=True):
            v[active] = weights @ cotangents
        own = {name: call.leaves[name] for layer in layers for name in layer.parameters}
        self.numbers = {name: leaf.numel() for name, leaf in own.items()}
        self.dtypes = {name: leaf.dtype for name, leaf in own.items()}
        self.norms = {name: [0.0, 0.0] for name in own}
        self.mixed: set[str] = set()
        self._call: Call | None = call
        for part in _parts_of_size(call, layers, gradient_bytes):
            names = [name for layer in part for name in layer.parameters]
            of_parameters = [get_gradient_edge(own[name]) for name in names]
            edges = [(layer.name, edge) for layer in part if layer.name in recorded for edge in call.edges(layer)]
            for which, silent in enumerate((halves[1], halves[0] if n > 1 else halves[1])):
                inputs = of_parameters + [edge for _, edge in edges]
                found = torch.autograd.grad(call.output, inputs, self.v[which], retain_graph=True, allow_unused=True)
                for name, gradient in zip(names, found, strict=False):
                    self.norms[name][which] = 0.0 if gradient is None else norm_of(gradient)
                for (name, _), gradient in zip(edges, found[len(names) :], strict=True):
                    if gradient is not None and bool(gradient[silent].any()):
                        self.mixed.add(name)

    def noise(self, names: Sequence[str]) -> list[float]:
        """How far squared norms of gradients may be apart by autograd's own rounding, for both v.

        Args:
            names: Parameters whose gradients are taken together.
        """
        assert self._call is not None
        by = [get_gradient_edge(self._call.leaves[name]) for name in names]
        found = []
        for v in self.v:
            once, again = (
                torch.autograd.grad(self._call.output, by, scale * v, retain_graph=True, allow_unused=True)
                for scale in (1.0, _ANOTHER_SCALE)
            )
            pairs = [(g, h) for g, h in zip(once, again, strict=True) if g is not None and h is not None]
            size = math.hypot(*(norm_of(g) for g, _ in pairs))
            found.append(apart(size, math.hypot(*(norm_of(h / _ANOTHER_SCALE - g) for g, h in pairs))))
        return found

    def rounding(self, names: Sequence[str], which: int) -> float:
        """How large the rounding of the gradients of some parameters may be, for one v, beside those of all others.

        Where gradients cancel, as those of a bias before a norm do, nothing but rounding is left.
        """
        largest = max(norms[which] for norms in self.norms.values())
        return _ROUNDING * max(torch.finfo(self.dtypes[name]).eps for name in names) * largest

    def release(self) -> None:
        """Lets go of the graph of the call."""
        self._call = None


def apart(size: float, distance: float) -> float:
    """How far the squared norms of two vectors of about a size may be apart, from the norm of their difference."""
    return 2 * size * distance + distance**2


def _weights(k: int, r: int, generator: torch.Generator, *, centered: bool) -> Tensor:
    weights = torch.randn(k, r, generator=generator, dtype=torch.float64, device="cpu")
    return weights - weights.mean(0) if centered and k > 1 else weights  # of a single sample, nothing would be left


def _parts_of_size(call: Call, layers: Sequence[Layer], most_bytes: int) -> Iterator[list[Layer]]:
    """Cuts the layers into parts whose parameters together are of so many bytes, or into single ones."""
    part: list[Layer] = []
    held = 0
    for layer in layers:
        size = sum(call.leaves[name].nbytes for name in layer.parameters)
        if part and held + size > most_bytes:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


@dataclass(frozen=True)
class Comparison:
    """What was captured of some parameters of a layer beside autograd's gradients.

    Attributes:
        names: The parameters, which are compared together.
        difference: The larger difference of norms for both v, as in `Certificate`; nan where they are not finite.
        beyond: How far the squared norms for each v are apart beyond what the rounding of sums explains.
    """

    names: tuple[str, ...]
    difference: float
    beyond: list[float]

    def within(self, noise: Sequence[float]) -> bool:
        """Whether what is beyond is within the noise of autograd itself."""
        return all(one <= _TIMES_NOISE * own for one, own in zip(self.beyond, noise, strict=True))


# A sum of addends, and the size of each addend [k].
_Sum: TypeAlias = tuple[Tensor, Tensor]


def compare(reference: Reference, layer: PlannedLayer, a: Tensor, g: Tensor) -> list[Comparison]:
    """Compares what was captured of a layer with autograd, each parameter on its own where that can be.

    Args:
        reference: Autograd's side, for the same samples.
        layer: The layer.
        a: Its forward factor [n, s, d], or an empty one.
        g: Its backward factor [r, n, s, m], or its Jacobian [r, n, 1, parameters].
    """
    of_each = [_parts(reference, layer, a, g, which) for which in (0, 1)]
    dtype = max({g.dtype, *(reference.dtypes[name] for name in layer.parameters)}, key=lambda one: torch.finfo(one).eps)
    found = []
    for (names, first), (_, second) in zip(*of_each, strict=True):
        both = [_difference(sums, _expected(reference, names, v), dtype) for v, sums in enumerate((first, second))]
        largest = max((one for one, _ in both), key=lambda one: math.inf if math.isnan(one) else one)
        found.append(Comparison(names, largest, [beyond for _, beyond in both]))
    return found


def _parts(
    reference: Reference, layer: PlannedLayer, a: Tensor, g: Tensor, which: int
) -> list[tuple[tuple[str, ...], list[_Sum]]]:
    """J^T v for one v, by the parameters that are compared together: the sums that have their gradients."""
    active, weights = reference.active[which], reference.weights[which]
    wide = _summed_in(g.dtype)
    h = torch.einsum("kr,rksm->ksm", weights.to(wide), g[:, active].to(wide)).flatten(0, 1)  # [k s, m]
    alone = tuple(name for name in layer.parameters if not _is_bias(name))
    biases = tuple(name for name in layer.parameters if _is_bias(name))
    parts: list[tuple[tuple[str, ...], list[_Sum]]]
    if a.shape[2] > 0:
        inputs, sizes = a[active].flatten(0, 1).to(wide), h.norm(dim=1)
        of_weight: list[_Sum] = [(h.mT @ inputs, sizes * inputs.norm(dim=1))]
        parts = [(alone, of_weight), (biases, [(h.sum(0), sizes)] if layer.bias else [])]
    elif layer.rule is None and h.shape[1] == layer.m:
        columns = torch.split(h, [reference.numbers[name] for name in layer.parameters], 1)
        return [((name,), [_sum(one)]) for name, one in zip(layer.parameters, columns, strict=True)]
    elif layer.d > 0:
        of_both = torch.split(h, [layer.m * layer.d, h.shape[1] - layer.m * layer.d], 1)
        parts = [(names, [_sum(one)]) for names, one in zip((alone, biases), of_both, strict=True)]
    else:
        return [(layer.parameters, [_sum(h)])]
    if len(biases) != 1 or not layer.bias:  # which parameter is the bias, or where the rule has it, is not known
        return [(layer.parameters, [one for _, sums in parts for one in sums])]
    return parts


def _sum(addends: Tensor) -> _Sum:
    return addends.sum(0), addends.norm(dim=1)


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].endswith("bias")


def _expected(reference: Reference, names: Sequence[str], which: int) -> float:
    return sum(reference.norms[name][which] ** 2 for name in names)


def _difference(sums: Sequence[_Sum], expected: float, dtype: torch.dtype) -> tuple[float, float]:
    """The difference of two norms relative to the size of the addends, and that of their squares beyond rounding."""
    norms = [norm_of(total) for total, _ in sums]
    square = sum(one**2 for one in norms)
    if not math.isfinite(square) or not math.isfinite(expected):  # the measurement says so by itself
        return math.nan, 0.0
    # The rounding of a sum is that of its addends, which may cancel.
    of_products = _ROUNDING_OF_PRODUCTS * torch.finfo(dtype).eps
    of_sum = _ROUNDING * torch.finfo(_summed_in(dtype)).eps
    lengths = [norm_of(sizes) for _, sizes in sums]
    errors = [
        of_products * length + of_sum * float(sizes.sum(dtype=torch.float64))
        for length, (_, sizes) in zip(lengths, sums, strict=True)
    ]
    rounding = sum(2 * norm * error + error**2 for norm, error in zip(norms, errors, strict=True))
    beyond = max(0.0, abs(square - expected) - TOLERANCE[dtype] * expected - rounding)
    difference, scale = abs(math.sqrt(square) - math.sqrt(expected)), math.hypot(*lengths)
    return difference / scale if scale else (math.inf if difference else 0.0), beyond


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm_of(values: Tensor) -> float:
    """The Frobenius norm."""
    if values.layout != torch.strided:
        values = values.coalesce().values()
    if values.dtype == torch.float32:
        found = float(torch.linalg.vector_norm(values))
        if _SAFE_NORMS[0] < found < _SAFE_NORMS[1]:
            return found
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))
