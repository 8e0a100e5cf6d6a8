"""Measures one network: whether the package takes it as it is, the times, and the distance from autograd."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import jacobians, ours, timing
from benchmarks.third_party import explicit, reference
from benchmarks.third_party.layers import a_few, parameters_by_layer, parameters_of
from benchmarks.third_party.problem import OUTPUTS, Network, Problem, labels
from benchmarks.third_party.row import Row


def measure(network: Network, repeats: int, limit: float) -> Row:
    """The row of a network that is installed."""
    row = Row(network.library, network.version or "", network.name)
    try:
        problem = network.build()
        warnings.simplefilter("ignore")  # libraries have filters of their own
        model, options = problem.model, problem.options
        found = ours.layerwise_by_name(model, problem.x, labels(), **options)
        explained = ours.explained(model, problem.x, **options)
    except Exception as reason:  # the sentence that a user would read
        row.refusal = explicit.sentence(reason)
        return row
    without_rule = [one for one in explained if one.route == "fallback"]
    row.layers, row.undefined = len(found), sum(map(math.isnan, found.values()))
    row.fallback = dict(Counter(one.kind for one in without_rule).most_common())
    times = timing.interleaved({"": lambda: ours.layerwise_by_name(model, problem.x, labels(), **options)}, repeats)
    row.ours_s = times[""].median
    few = a_few({one.layer: one.kind for one in explained}, [one.layer for one in without_rule])
    compare_with_float64(row, problem, few, found)
    compare_with_jacobians(row, network, found, limit)
    return row


def compare_with_float64(row: Row, problem: Problem, layers: list[str], found: dict[str, float]) -> None:
    """Fills in how far kernels and alignments of these layers are from autograd's."""
    row.checked = layers
    expected = rounded = reference.kernels(problem, layers, in_float64=False)
    try:
        expected = reference.kernels(problem, layers, in_float64=True)
    except Exception as reason:  # some libraries make float32 inside
        row.no_float64 = explicit.sentence(reason)
    target = functional.one_hot(labels(), OUTPUTS).double()
    alignments = [float(jacobians.kernel_alignment(kernel, target)) for kernel in expected]
    row.kernel_difference = kernel_difference(problem, layers, expected)
    row.alignment_difference = alignment_difference([found[name] for name in layers], alignments)
    if row.no_float64 is not None:
        return
    row.autograd_difference = max(map(distance, rounded, expected))
    exact = problem.copied(torch.float64)
    try:
        row.kernel_difference_float64 = kernel_difference(exact, layers, expected)
        again = ours.layerwise_by_name(exact.model, exact.x, labels(), layers=layers, **exact.options)
    except Exception as reason:
        row.refusal_float64 = explicit.sentence(reason)
        return
    row.alignment_difference_float64 = alignment_difference([again[name] for name in layers], alignments)


def kernel_difference(problem: Problem, layers: list[str], expected: Sequence[Tensor]) -> float:
    """The largest relative distance of a kernel from the expected one."""
    in_order = dict(zip(layers, expected, strict=True))
    names = [one.layer for one in ours.explained(problem.model, problem.x, layers=layers, **problem.options)]
    kernels = ours.dense_kernels(problem.model, problem.x, layers, **problem.options)
    return max(distance(kernel, in_order[name]) for name, kernel in zip(names, kernels, strict=True))


def distance(kernel: Tensor, expected: Tensor) -> float:
    """The distance of a kernel from the expected one, relative to the norm of that."""
    return relative(float((kernel.double() - expected).norm()), float(expected.norm()))


def alignment_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference of an alignment; one that is not defined has none."""
    pairs = zip(found, expected, strict=True)
    return max((relative(abs(a - b), b) for a, b in pairs if not math.isnan(a)), default=0.0)


def relative(difference: float, size: float) -> float:
    """A difference beside a size, both of which may be 0."""
    return difference / size if size else (0.0 if difference == 0 else math.inf)


def compare_with_jacobians(row: Row, network: Network, found: dict[str, float], limit: float) -> None:
    """Fills in the time of all layers by Jacobians, and how far their alignments are."""
    owned = parameters_by_layer(network.build().model)
    timed = explicit.alignments(network.build, {name: parameters_of(owned, name) for name in found}, limit)
    row.jacobians_s, row.jacobians_by, row.no_vmap = timed.seconds, timed.ways, timed.refusal
    differences = [abs(found[name] - value) for name, value in timed.alignments.items()]
    row.from_jacobians = max(filter(math.isfinite, differences), default=None)
