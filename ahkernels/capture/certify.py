"""The certificate: what was captured of a layer is held against autograd in the very same call of the model.

For random weights v on the outputs, the squared norm of J^T v, with the Jacobian J of a layer, is v^T K v from what was
captured, and it is the squared norm of autograd's own gradient of <v, f> by the layer's parameters. A fault in what was
captured changes one and not the other: parameters that act in another way than the layer's rule knows, or a forward
that is not the module's own. A bias is compared on its own, since it would hide behind its weight. v is all but
centered for each output: the mean gradient of a near-constant network would hide everything else, and without any of it
constants would hide. With v on a random half of the samples alone, the gradients of all others must be zero at the
output of every layer, or else samples act on one another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ahkernels.capture.call import Call
from ahkernels.capture.selection import Layer
from ahkernels.capture.traced import TracedLayer
from ahkernels.precision import coarsest

# The part of the mean over samples that centering leaves of v: a mean gradient that is larger than all differences
# between samples by 1 / sqrt(tolerance) times that hides them, and a constant is found where it exceeds its rounding.
_LEFT_OF_MEAN = {torch.float64: 0.3, torch.float32: 0.03, torch.float16: 0.3, torch.bfloat16: 0.3}
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
# Squared norms that are apart by more than a half are explained by what autograd's own gradients are seen to be apart,
# and not by what they might be.
_MOST_APART = 0.5
# Where the norm of a gradient counts for nothing beside the largest: that of rounding in float64, not in float32.
_NOTHING = 1e-12
# A norm over numbers that are all the same leaves nothing but rounding, divided by sqrt(eps) of about 1/300.
ROUNDING_OF_NORMS = 300
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
        weights: Those of the samples [n, r] for each cotangent.
        v: Their v [n, o].
        norms: For each parameter, the norm of the gradient of <v, f>.
        numbers: The length of each parameter.
        dtypes: The dtype with the fewest digits on the way of gradients to each parameter.
        mixed: The layers at whose output the gradients of samples without weight are not zero.
    """

    def __init__(
        self, call: Call, layers: Sequence[Layer], recorded: Set[str], cotangents: Tensor, gradient_bytes: int
    ) -> None:
        own = {name: call.leaves[name] for layer in layers for name in layer.parameters}
        self.numbers = {name: leaf.numel() for name, leaf in own.items()}
        on_the_way = call.dtypes_of_gradients
        self.dtypes = {name: coarsest({leaf.dtype, on_the_way.get(id(leaf), leaf.dtype)}) for name, leaf in own.items()}
        n, device = len(call.output), call.output.device
        generator = torch.Generator("cpu").manual_seed(n)
        silent = torch.randperm(n, generator=generator, device="cpu")[: n // 2].to(device)
        weights = torch.randn(n, len(cotangents), generator=generator, dtype=torch.float64, device="cpu")
        if n > 1:  # of a single sample, nothing would be left
            left = _LEFT_OF_MEAN[coarsest({call.output.dtype, *self.dtypes.values()})]
            weights -= (1 - left) * weights.mean(0)
        self.weights = weights.to(call.output)
        self.v = self.weights @ cotangents
        of_half = self.v.index_fill(0, silent, 0)
        self.norms: dict[str, float] = {}
        self.mixed: set[str] = set()
        self._call: Call | None = call
        for part in _parts_of_size(call, layers, gradient_bytes):
            names = [name for layer in part for name in layer.parameters]
            found = gradients_by(call.output, [get_gradient_edge(own[name]) for name in names], self.v)
            self.norms |= dict(zip(names, _norms(found), strict=True))
            edges = [(layer.name, edge) for layer in part if layer.name in recorded for edge in call.edges(layer)]
            if not edges or not len(silent):
                continue
            of_edges = zip(edges, gradients_by(call.output, [edge for _, edge in edges], of_half), strict=True)
            reached = [(name, gradient) for (name, _), gradient in of_edges if gradient is not None]
            if reached:
                rows = [one if len(one) == n else one.reshape(n, -1) for _, one in reached]  # of samples
                acting = torch.stack([one[silent].any() for one in rows]).tolist()
                self.mixed |= {name for (name, _), acts in zip(reached, acting, strict=True) if acts}

    def noise(self, names: Sequence[str]) -> float:
        """How far squared norms of gradients may be apart by autograd's own rounding.

        Args:
            names: Parameters whose gradients are taken together.
        """
        assert self._call is not None
        by = [get_gradient_edge(self._call.leaves[name]) for name in names]
        size, distance = rounding_of_gradients(self._call.output, by, self.v)
        bits = max(8 * self.dtypes[name].itemsize for name in names)
        return (_TIMES_NOISE_OF_16_BITS if bits == 16 else _TIMES_NOISE) * apart(size, distance)

    def rounding(self, names: Sequence[str]) -> float:
        """How large the rounding of the gradients of some parameters may be, beside those of all others.

        Where gradients cancel, as those of a bias before a norm do, nothing but rounding is left.
        """
        return _ROUNDING * max(torch.finfo(self.dtypes[name]).eps for name in names) * self.largest_norm

    @functools.cached_property
    def largest_norm(self) -> float:
        """The largest norm of a gradient."""
        return max(self.norms.values())

    def release(self) -> None:
        """Lets go of the graph of the call."""
        self._call = None


def gradients_by(
    output: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge], v: Tensor
) -> Sequence[Tensor | None]:
    """Autograd's own gradients of <v, f>; None where the output f does not depend on an input."""
    found: Sequence[Tensor | None] = torch.autograd.grad(output, inputs, v, retain_graph=True, allow_unused=True)
    return found


def rounding_of_gradients(
    output: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge], v: Tensor
) -> tuple[float, float]:
    """The size of gradients of <v, f>, and how far those for multiples of v are from them, by nothing but rounding."""
    once, *again = (gradients_by(output, inputs, scale * v) for scale in (1.0, *_OTHER_SCALES))
    distances = [
        math.hypot(
            *_norms([None if g is None or h is None else h / scale - g for g, h in zip(once, other, strict=True)])
        )
        for scale, other in zip(_OTHER_SCALES, again, strict=True)
    ]
    return math.hypot(*_norms(once)), max(distances)


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
        difference: The difference of the norms, as in `Certificate`; nan where they are not finite.
        beyond: How far the squared norms are apart beyond what the rounding of sums explains.
        gross: Whether that is more than a half of the larger one.
    """

    names: tuple[str, ...]
    difference: float
    beyond: float
    gross: bool = False


def compare(reference: Reference, captured: Sequence[tuple[TracedLayer, Tensor, Tensor]]) -> list[list[Comparison]]:
    """Compares what was captured of layers with autograd, each parameter on its own where that can be.

    Args:
        reference: Autograd's side, for the same samples.
        captured: Layers, each with its forward factor [n, s, d] and its backward factor [r, n, s, m], or with an empty
            one and its Jacobian [r, n, 1, parameters].

    Returns:
        The comparisons of each layer.
    """
    parts = [_parts(reference, *one) for one in captured]
    sums = iter(_sums([addends for of_layer in parts for _, found in of_layer for addends in found]))
    return [
        [_comparison(reference, layer, g.dtype, names, [next(sums) for _ in found]) for names, found in of_layer]
        for (layer, _, g), of_layer in zip(captured, parts, strict=True)
    ]


def explained(one: Comparison, reference: Reference, layer: TracedLayer) -> bool:
    """Whether a comparison finds no more than rounding and the noise of autograd itself."""
    if one.beyond == 0:
        return True
    noise = reference.noise(one.names)
    rounding = _rounding(reference, layer, one.names)
    if layer.d == 0 and (not one.gross or rounding <= _NOTHING * reference.largest_norm):
        noise = max(noise, rounding**2)
    return one.beyond <= noise


def _rounding(reference: Reference, layer: TracedLayer, names: Sequence[str]) -> float:
    """How large the rounding of gradients of a layer's parameters may be, with what a norm makes of it."""
    return reference.rounding(names) * (ROUNDING_OF_NORMS if layer.d == 0 else 1)


class _Addends(NamedTuple):
    """What J^T v is a sum of, over samples and their positions.

    Attributes:
        h: Weighted backward factors [n, s, m], or columns of a weighted Jacobian.
        a: The forward factors [n, s, d] to be multiplied with them, or words [n, s, 1]; None for h alone.
    """

    h: Tensor
    a: Tensor | None = None


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


def _parts(
    reference: Reference, layer: TracedLayer, a: Tensor, g: Tensor
) -> list[tuple[tuple[str, ...], list[_Addends]]]:
    """The addends of J^T v, by the parameters that are compared together."""
    wide = _summed_in(g.dtype)
    n, s, m = g.shape[1:]
    weighted = reference.weights.to(wide)[:, None] @ g.to(wide).transpose(0, 1).flatten(2)  # [n, 1, s m]
    h = weighted.view(n, s, m)
    alone = tuple(name for name in layer.parameters if not _is_bias(name))
    biases = tuple(name for name in layer.parameters if _is_bias(name))
    if a.shape[2] > 0:
        of_weight, of_bias = [_Addends(h, a.to(wide) if a.is_floating_point() else a)], [_Addends(h)][: layer.bias]
    elif layer.d == 0 and m == layer.m == sum(reference.numbers[name] for name in layer.parameters):
        columns = torch.split(h, [reference.numbers[name] for name in layer.parameters], 2)
        return [((name,), [_Addends(one)]) for name, one in zip(layer.parameters, columns, strict=True)]
    elif layer.d > 0 and m > 0:
        weight = layer.m * layer.d
        of_weight, of_bias = [_Addends(h[:, :, :weight])], [_Addends(h[:, :, weight:])]
    else:
        return [(layer.parameters, [_Addends(h)])]
    if len(biases) != 1 or not layer.bias:  # which parameter is the bias, or where the rule has it, is not known
        return [(layer.parameters, of_weight + of_bias)]
    return [(alone, of_weight), (biases, of_bias)]


def _sums(addends: Sequence[_Addends]) -> list[_Sum]:
    """The sums; those of one shape are computed together, since many of them are small."""
    alike: dict[object, list[int]] = {}
    for place, (h, a) in enumerate(addends):
        alike.setdefault((h.shape, h.dtype, None if a is None else (a.shape, a.dtype)), []).append(place)
    found = []
    for places in alike.values():
        h = _stacked([addends[place].h for place in places])
        factors = [a for _, a in (addends[place] for place in places) if a is not None]
        found.append(_of_products(h, _stacked(factors)) if factors else _of_vectors(h))
    order = [place for places in alike.values() for place in places]
    numbers = dict(zip(order, torch.cat(found).tolist() if found else [], strict=True))
    return [_Sum(*numbers[place]) for place in range(len(addends))]


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    """The rows of l factors [n, s, m], [l, k, m]."""
    rows = factors[0][None] if len(factors) == 1 else torch.stack(list(factors))
    return rows.flatten(1, 2)


def _of_vectors(h: Tensor) -> Tensor:
    """The numbers [l, 3] of sums of the rows of h [l, k, m]."""
    norms = torch.linalg.vector_norm(h.sum(1), dim=1, dtype=torch.float64)
    return _numbers(norms.square(), torch.linalg.vector_norm(h, dim=2, dtype=torch.float64))


def _of_products(h: Tensor, a: Tensor) -> Tensor:
    """The numbers [l, 3] of sums of the outer products of rows, h^T a, of h [l, k, m] and a [l, k, d]."""
    if not a.is_floating_point():  # words
        norms = torch.stack([_norm(_sum_by_word(*pair)) for pair in zip(h, a.squeeze(2), strict=True)])
        return _numbers(norms.square(), h.norm(dim=2).double() * (a.squeeze(2) >= 0))
    (_, k, m), d = h.shape, a.shape[2]
    if k * (m + d) < m * d:  # Grams are smaller, and in float64 as exact
        h, a = h.double(), a.double()
        products = (h @ h.mT).mul_(a @ a.mT)  # [l, k, k]
        return _numbers(products.sum((1, 2)).clamp_(min=0), products.diagonal(dim1=1, dim2=2).sqrt())
    norms = torch.linalg.vector_norm(h.mT @ a, dim=(1, 2), dtype=torch.float64)
    return _numbers(norms.square(), h.norm(dim=2).double() * a.norm(dim=2))


def _sum_by_word(h: Tensor, words: Tensor) -> Tensor:
    """The sum of the rows of h [k, m] for each word but -1."""
    h, words = h[words >= 0], words[words >= 0]
    different, place = torch.unique(words, return_inverse=True)
    return h.new_zeros(len(different), h.shape[1]).index_add_(0, place, h)


def _numbers(squares: Tensor, sizes: Tensor) -> Tensor:
    """The numbers of a `_Sum` [l, 3], from squared norms [l] and the norms of addends [l, k]."""
    return torch.stack((squares, sizes.sum(1), sizes.square().sum(1)), 1)


def _comparison(
    reference: Reference, layer: TracedLayer, dtype: torch.dtype, names: tuple[str, ...], sums: Sequence[_Sum]
) -> Comparison:
    """Compares sums with the gradients of some parameters."""
    lacking = () if layer.bias or layer.d == 0 else tuple(name for name in layer.parameters if _is_bias(name))
    coarsest_dtype = coarsest({dtype, *(reference.dtypes[name] for name in layer.parameters)})
    rounding = _rounding(reference, layer, names) if names else 0.0
    square, expected = sum(one.square for one in sums), sum(reference.norms[name] ** 2 for name in names)
    difference, beyond = _difference(sums, expected, coarsest_dtype, reference.largest_norm, rounding)
    if lacking:
        # A rule may have the bias at a position of its own; then this is not closer without it.
        of_bias = sum(reference.norms[name] ** 2 for name in lacking)
        if abs(square - expected + of_bias) < abs(square - expected):
            beyond = max(beyond, of_bias)
    return Comparison(names, difference, beyond, gross=beyond > _MOST_APART * max(square, expected))


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].endswith("bias")


def _difference(
    sums: Sequence[_Sum], expected: float, dtype: torch.dtype, largest: float, rounding_of_largest: float
) -> tuple[float, float]:
    """The difference of two norms relative to the size of the addends, and that of their squares beyond rounding.

    Where addends are nothing but the rounding of the largest gradient, a difference of that size is relative to it.
    """
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
    if max(difference, scale) <= rounding_of_largest:
        scale = largest
    return difference / scale if scale else (math.inf if difference else 0.0), beyond


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _norms(gradients: Sequence[Tensor | None]) -> list[float]:
    """The Frobenius norms; 0 for None. Waits once for those in float32, and once for all that need float64."""
    given = {place: one for place, one in enumerate(gradients) if one is not None}
    plain = {place: one for place, one in given.items() if one.layout == torch.strided and one.dtype == torch.float32}
    quick = torch.stack(torch._foreach_norm([*plain.values()])).tolist() if plain else []
    found = dict.fromkeys(range(len(gradients)), 0.0)
    found |= {place: norm for place, norm in zip(plain, quick, strict=True) if _SAFE_NORMS[0] < norm < _SAFE_NORMS[1]}
    rest = {place: one for place, one in given.items() if found[place] == 0}
    if rest:
        found |= zip(rest, torch.stack([_norm(one) for one in rest.values()]).tolist(), strict=True)
    return list(found.values())


def _norm(values: Tensor) -> Tensor:
    """The Frobenius norm, float64."""
    if values.layout != torch.strided:
        values = values.coalesce().values()
    found: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return found
