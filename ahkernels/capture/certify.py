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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ahkernels.capture.call import Call
from ahkernels.capture.plan import PlannedLayer
from ahkernels.capture.selection import Layer

# How far two squared norms may be apart, relative to their size, for the coarsest dtype of a layer.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# The rounding of a sum, in units of the dtype's for the sizes of the addends: that of each product, which adds up at
# random, and that of the running sum, which is kept in fp32 at least.
_ROUNDING_OF_PRODUCTS, _ROUNDING = 2, 4
# Those of v where autograd's own rounding is looked for; no powers of two, which would show none.
_OTHER_SCALES = (1.37, 0.71, 2.9)
# Where autograd's own gradients are apart by so much, ours may be apart by this many times as much: a few digits of
# sums that cancel, but not of 16-bit numbers, which have few themselves.
_TIMES_NOISE, _TIMES_NOISE_OF_16_BITS = 10, 3
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
        weights: Those of the samples [n, r] for each cotangent, of both v together.
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
        self.active = halves if n > 1 else halves[:1] * 2
        self._rows = torch.stack((self.active[0], torch.cat((self.active[1], self.active[0]))[: len(self.active[0])]))
        weights = torch.randn(n, len(cotangents), generator=generator, dtype=torch.float64, device="cpu").to(device)
        if len(halves[0]) > 1:  # of a single sample, nothing would be left
            weights[halves[0]] -= weights[halves[0]].mean(0)
        self.weights = weights.to(call.output.dtype)
        self.v = [call.output.new_zeros(n, cotangents.shape[1]) for _ in (0, 1)]
        for v, active in zip(self.v, self.active, strict=True):
            v[active] = self.weights[active] @ cotangents
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
            for which in (0, 1):
                inputs = of_parameters + ([] if which else [edge for _, edge in edges])
                found = torch.autograd.grad(call.output, inputs, self.v[which], retain_graph=True, allow_unused=True)
                for name, norm in zip(names, _norms(found[: len(names)]), strict=True):
                    self.norms[name][which] = norm
                of_edges = zip(edges, found[len(names) :], strict=True) if not which else ()
                reached = [(name, gradient) for (name, _), gradient in of_edges if gradient is not None]
                if reached and len(halves[1]):
                    acting = torch.stack([gradient[halves[1]].any() for _, gradient in reached]).tolist()
                    self.mixed |= {name for (name, _), acts in zip(reached, acting, strict=True) if acts}

    def halves(self, factor: Tensor) -> Tensor:
        """The rows of a factor [n, s, m] for both v, [2, k s, m]."""
        return factor[self._rows].flatten(1, 2)

    def weighted(self, factor: Tensor) -> Tensor:
        """The same of a factor that has been multiplied by weights."""
        found = factor[self._rows]
        if len(self.active[1]) < len(self.active[0]):
            found[1, -1] = 0  # one sample less
        return found.flatten(1, 2)

    def noise(self, names: Sequence[str]) -> list[float]:
        """How far squared norms of gradients may be apart by autograd's own rounding, for both v.

        Args:
            names: Parameters whose gradients are taken together.
        """
        assert self._call is not None
        by = [get_gradient_edge(self._call.leaves[name]) for name in names]
        bits = max(8 * self.dtypes[name].itemsize for name in names)
        found = []
        for v in self.v:
            once, *again = (
                torch.autograd.grad(self._call.output, by, scale * v, retain_graph=True, allow_unused=True)
                for scale in (1.0, *_OTHER_SCALES)
            )
            size = math.hypot(*(float(_norm(one)) for one in once if one is not None))
            distances = [
                math.hypot(*(float(_norm(h / scale - g)) for g, h in zip(once, other, strict=True) if g is not None))
                for scale, other in zip(_OTHER_SCALES, again, strict=True)
            ]
            found.append((_TIMES_NOISE_OF_16_BITS if bits == 16 else _TIMES_NOISE) * apart(size, max(distances)))
        return found

    def rounding(self, names: Sequence[str]) -> float:
        """How large the rounding of the gradients of some parameters may be, beside those of all others.

        Where gradients cancel, as those of a bias before a norm do, nothing but rounding is left.
        """
        largest = max(max(norms) for norms in self.norms.values())
        return _ROUNDING * max(torch.finfo(self.dtypes[name]).eps for name in names) * largest

    def release(self) -> None:
        """Lets go of the graph of the call."""
        self._call = None


def apart(size: float, distance: float) -> float:
    """How far the squared norms of two vectors of about a size may be apart, from the norm of their difference."""
    return 2 * size * distance + distance**2


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
        """Whether what is beyond is explained by the noise of autograd itself."""
        return all(one <= own for one, own in zip(self.beyond, noise, strict=True))


def compare(reference: Reference, layer: PlannedLayer, a: Tensor, g: Tensor) -> list[Comparison]:
    """Compares what was captured of a layer with autograd, each parameter on its own where that can be.

    Args:
        reference: Autograd's side, for the same samples.
        layer: The layer.
        a: Its forward factor [n, s, d], or an empty one.
        g: Its backward factor [r, n, s, m], or its Jacobian [r, n, 1, parameters].
    """
    wide = _summed_in(g.dtype)
    h = torch.einsum("nr,rnsm->nsm", reference.weights.to(wide), g.to(wide))
    of_both = (
        reference.weighted(h),
        reference.halves(a.to(wide) if a.is_floating_point() else a),
    )  # [2, k s, m] and [2, k s, d]
    dtype = max({g.dtype, *(reference.dtypes[name] for name in layer.parameters)}, key=lambda one: torch.finfo(one).eps)
    found = []
    lacking = () if layer.bias or layer.d == 0 else tuple(name for name in layer.parameters if _is_bias(name))
    for names, sums in _parts(reference, layer, *of_both):
        expected = [sum(reference.norms[name][which] ** 2 for name in names) for which in (0, 1)]
        first, second = (_difference([one[which] for one in sums], expected[which], dtype) for which in (0, 1))
        largest = max((first[0], second[0]), key=lambda one: math.inf if math.isnan(one) else one)
        beyond = [first[1], second[1]]
        for which in (0, 1) if lacking else ():
            # A rule may have the bias at a position of its own; then this is not closer without it.
            of_bias = sum(reference.norms[name][which] ** 2 for name in lacking)
            square = sum(one[which].square for one in sums)
            if abs(square - expected[which] + of_bias) < abs(square - expected[which]):
                beyond[which] = max(beyond[which], of_bias)
        found.append(Comparison(names, largest, beyond))
    return found


class _Sum(NamedTuple):
    """A sum of vectors or matrices.

    Attributes:
        square: Its squared Frobenius norm.
        sizes: The sum of the norms of the addends.
        squares: The sum of their squares.
    """

    square: float
    sizes: float
    squares: float


def _sums(addends: Tensor) -> list[_Sum]:
    """The sums of the rows of matrices [2, k, m]."""
    squares = torch.stack([_norm(one.sum(0)) for one in addends]).square()
    return _both(squares, torch.linalg.vector_norm(addends, dim=2, dtype=torch.float64))


def _sums_of_products(h: Tensor, a: Tensor) -> list[_Sum]:
    """The sums of the outer products of rows, h^T a, of h [2, k, m] and a [2, k, d]."""
    if not a.is_floating_point():  # words
        sums = [_sum_by_word(one, words.squeeze(1)) for one, words in zip(h, a, strict=True)]
        return _both(torch.stack([_norm(one) for one in sums]).square(), h.norm(dim=2).double() * (a.squeeze(2) >= 0))
    (_, k, m), d = h.shape, a.shape[2]
    if k * (m + d) < m * d:  # Grams are smaller, and in float64 as exact
        h, a = h.double(), a.double()
        products = (h @ h.mT) * (a @ a.mT)  # [2, k, k]
        return _both(products.sum((1, 2)).clamp_(min=0), products.diagonal(dim1=1, dim2=2).sqrt())
    squares = torch.stack([_norm(one.mT @ other) for one, other in zip(h, a, strict=True)]).square()
    return _both(squares, h.norm(dim=2).double() * a.norm(dim=2))


def _sum_by_word(h: Tensor, words: Tensor) -> Tensor:
    """The sum of the rows of h [k, m] for each word but -1."""
    h, words = h[words >= 0], words[words >= 0]
    different, place = torch.unique(words, return_inverse=True)
    return h.new_zeros(len(different), h.shape[1]).index_add_(0, place, h)


def _both(squares: Tensor, sizes: Tensor) -> list[_Sum]:
    numbers = torch.stack((squares, sizes.sum(1), sizes.square().sum(1)), 1).tolist()
    return [_Sum(*one) for one in numbers]


def _parts(
    reference: Reference, layer: PlannedLayer, h: Tensor, a: Tensor
) -> list[tuple[tuple[str, ...], list[list[_Sum]]]]:
    """J^T v for both v, by the parameters that are compared together.

    Args:
        reference: Autograd's side.
        layer: The layer.
        h: The weighted backward factors of the samples with weight, at all positions [2, k, m], or the rows of their
            weighted Jacobian [2, k, parameters].
        a: The forward factors there [2, k, d].
    """
    alone = tuple(name for name in layer.parameters if not _is_bias(name))
    biases = tuple(name for name in layer.parameters if _is_bias(name))
    parts: list[tuple[tuple[str, ...], list[list[_Sum]]]]
    if a.shape[2] > 0:
        parts = [(alone, [_sums_of_products(h, a)]), (biases, [_sums(h)] if layer.bias else [])]
    elif layer.rule is None and h.shape[2] == layer.m:
        columns = torch.split(h, [reference.numbers[name] for name in layer.parameters], 2)
        return [((name,), [_sums(one)]) for name, one in zip(layer.parameters, columns, strict=True)]
    elif layer.d > 0 and h.shape[2] > 0:
        of_both = torch.split(h, [layer.m * layer.d, h.shape[2] - layer.m * layer.d], 2)
        parts = [(names, [_sums(one)]) for names, one in zip((alone, biases), of_both, strict=True)]
    else:
        return [(layer.parameters, [_sums(h)])]
    if len(biases) != 1 or not layer.bias:  # which parameter is the bias, or where the rule has it, is not known
        return [(layer.parameters, [one for _, sums in parts for one in sums])]
    return parts


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].endswith("bias")


def _difference(sums: Sequence[_Sum], expected: float, dtype: torch.dtype) -> tuple[float, float]:
    """The difference of two norms relative to the size of the addends, and that of their squares beyond rounding."""
    square = sum(one.square for one in sums)
    if not math.isfinite(square) or not math.isfinite(expected):  # the measurement says so by itself
        return math.nan, 0.0
    # The rounding of a sum is that of its addends, which may cancel.
    of_product = _ROUNDING_OF_PRODUCTS * torch.finfo(dtype).eps
    of_sum = _ROUNDING * torch.finfo(_summed_in(dtype)).eps
    errors = [(math.sqrt(one.square), of_product * math.sqrt(one.squares) + of_sum * one.sizes) for one in sums]
    rounding = sum(apart(norm, error) for norm, error in errors)
    beyond = max(0.0, abs(square - expected) - _TOLERANCE[dtype] * expected - rounding)
    difference, scale = abs(math.sqrt(square) - math.sqrt(expected)), math.sqrt(sum(one.squares for one in sums))
    return difference / scale if scale else (math.inf if difference else 0.0), beyond


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _norms(gradients: Sequence[Tensor | None]) -> list[float]:
    """The Frobenius norms; 0 for None."""
    plain = [one for one in gradients if one is not None and one.layout == torch.strided and one.dtype == torch.float32]
    quick = iter(torch.stack(torch._foreach_norm(plain)).tolist() if plain else [])
    found = []
    for one in gradients:
        if one is None:
            found.append(0.0)
            continue
        norm = next(quick) if one.layout == torch.strided and one.dtype == torch.float32 else math.nan
        found.append(norm if _SAFE_NORMS[0] < norm < _SAFE_NORMS[1] else float(_norm(one)))
    return found


def _norm(values: Tensor) -> Tensor:
    """The Frobenius norm, float64."""
    if values.layout != torch.strided:
        values = values.coalesce().values()
    found: Tensor = torch.linalg.vector_norm(values)
    if values.dtype == torch.float32 and _SAFE_NORMS[0] < found < _SAFE_NORMS[1]:
        return found.double()
    exact: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return exact
