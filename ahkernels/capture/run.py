"""The run of a capture: the factors of as many layers in one pass as fit the memory budget together.

One pass over the model is a forward pass and a backward pass down to the first layer that is captured, with the
cotangents of all outputs batched. Samples are taken in chunks, which bounds the memory of a pass. The first chunk is
certified, which takes two gradients of parameters (see `ahkernels.capture.certify`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ahkernels.capture.call import Call, call_model
from ahkernels.capture.certify import Comparison, Reference, apart, compare
from ahkernels.capture.evaluation import require_determined
from ahkernels.capture.fallback import jacobian_of
from ahkernels.capture.guard import leaving_no_trace, other_random_numbers, quietly_batched
from ahkernels.capture.plan import CapturePlan, PlannedLayer
from ahkernels.capture.route import jacobian
from ahkernels.certificate import Certificate
from ahkernels.factors import LayerFactors
from ahkernels.kernel import TangentKernel, kernel_of_outputs

# Gradients of samples one by one may be so many times as far from those of a batch as those of other batches are.
_TIMES_SPLITS = 10
# More than that, relative to their norm, is not rounding that flips a ReLU here and there: samples act on one another.
_MOST_BETWEEN_SPLITS = 5e-3

# Samples, and autograd's side of the certificate for them.
_Certified: TypeAlias = tuple[slice, Reference]


class Capture:
    """A capture under way.

    Args:
        plan: Its plan.

    Attributes:
        layers: The planned layers by name; one whose rule fails has another plan from then on.
        differences: What the certificate found, by layer.
    """

    def __init__(self, plan: CapturePlan) -> None:
        self.plan = plan
        self.layers = dict(plan.layers)
        self.differences: dict[str, float] = {}
        self._certifies, self._calls_ago = plan.certifies, plan.known.calls

    @property
    def certificate(self) -> Certificate | None:
        """The certificate of this capture or of the last one that had one; None if none is asked for."""
        if self.plan.options.certify == 0:
            return None
        if self._certifies:
            return Certificate(dict(self.differences))
        return Certificate(dict(self.plan.known.certificate), self._calls_ago)

    def kernels(self) -> Iterator[tuple[str, TangentKernel]]:
        """Yields (name, kernel) in forward order, without searching the factors for nan and inf.

        As many groups are captured in one pass as fit the budget, and at least one. Factors are dropped here once the
        last group that needs them has been yielded.

        Raises:
            ValueError: If a call of the model has no valid output (see `call_model`), outputs depend on chance or on
                other samples, or no way to a layer's kernel agrees with autograd.
            RuntimeError: If a parameter changes meanwhile.
        """
        plan = self.plan
        rest = list(plan.groups)
        bar = tqdm(total=len(rest), desc="layers", unit="layer") if plan.options.progress else None
        with bar or nullcontext():
            while rest:
                names = self._that_fit(rest)
                rest = rest[len(names) :]
                factors = self._pass([name for name in self.layers if any(name in plan.groups[g] for g in names)])
                for i, name in enumerate(names):
                    later = {member for group in names[i + 1 :] for member in plan.groups[group]}
                    of_group = [factors[m] if m in later else factors.pop(m) for m in plan.groups[name]]
                    yield name, kernel_of_outputs(of_group, plan.outputs, plan.precision, name)
                    if bar is not None:
                        bar.update()
        if self._certifies:
            plan.known.certificate = {name: self.differences[name] for name in self.layers}
            plan.known.calls = 0
        plan.known.calls += 1

    def _that_fit(self, groups: Sequence[str]) -> list[str]:
        """The first groups whose layers fit the memory budget together, and at least one."""
        found: list[str] = []
        captured: set[str] = set()
        held = 0
        for group in groups:
            added = [name for name in self.plan.groups[group] if name not in captured]
            held += self.plan.memory.item * sum(self.layers[name].route.numbers for name in added)
            if found and held > self.plan.memory.kept:
                break
            found.append(group)
            captured.update(added)
        return found

    @leaving_no_trace
    def _pass(self, names: Sequence[str]) -> dict[str, LayerFactors]:
        """Captures the factors of layers, by name, in one pass over the samples."""
        plan = self.plan
        try:
            kept, references = self._by_rules([self.layers[name] for name in names])
            for name in names:
                if name not in kept:
                    kept[name] = self._by_fallback(self.layers[name], references)
        except RuntimeError:
            plan.require_unchanged()  # or else this is the cause
            raise
        plan.require_unchanged()
        return {
            name: LayerFactors(
                kept[name][0],
                kept[name][1].permute(1, 2, 0, 3),
                self.layers[name].as_jacobian or self.layers[name].bias,
                name,
                by_jacobian=self.layers[name].route.name == "jacobian slices",
                unchecked=True,
            )
            for name in names
        }

    def _by_rules(self, layers: Sequence[PlannedLayer]) -> tuple[dict[str, tuple[Tensor, Tensor]], list[_Certified]]:
        """Captures the layers that have a rule: a [n, s, d] and g [r, n, s, m] by name.

        A layer whose rule fails is left out and planned anew. Beside them, autograd's side of the certificate for all
        layers is returned, for each chunk of samples.
        """
        plan = self.plan
        with_rule = {layer.name: layer for layer in layers if layer.rule is not None}
        kept = {name: _Kept(len(plan.x)) for name in with_rule}
        references: list[_Certified] = []
        unreached = {layer.name for layer in layers}

        def drop(failing: set[str]) -> None:
            for name in failing & set(with_rule):
                del kept[name]
                self.layers[name] = plan.without_rule(with_rule.pop(name))
                plan.known.without_rule.add(name)

        for samples in plan.memory.chunks(list(with_rule.values())):
            if not with_rule and not self._certifies:
                break
            with other_random_numbers(plan.x.device, plan.trace.draws):
                call = call_model(plan.twin(), plan.x[samples], list(with_rule.values()))
            require_determined(plan, samples, call.output.detach(), thoroughly=self._certifies)
            unreached -= {layer.name for layer in layers if call.reaches(layer)}
            drop({name for name, layer in with_rule.items() if not call.by_uses_alone(layer)})
            if self._certifies:
                references.append((samples, Reference(call, layers, set(with_rule), plan.cotangents, plan.memory.work)))
                drop(references[-1][1].mixed)
            gradients = _gradients(call, list(with_rule.values()), plan.cotangents)
            for name, layer in list(with_rule.items()):
                a, g = _factors_of(call, layer, gradients.pop(name, None), plan.outputs.rows)
                if self._certifies and not self._agrees(references[-1][1], layer, a, g):
                    drop({name})
                else:
                    kept[name].add(samples, a, g)
            if self._certifies:
                references[-1][1].release()
            del call, gradients
        else:
            for name in sorted(unreached):
                warnings.warn(
                    f"layer {name!r} does not reach the output of the model: its kernel is zero", stacklevel=2
                )
        return {name: one.whole() for name, one in kept.items()}, references

    def _agrees(self, reference: Reference, layer: PlannedLayer, a: Tensor, g: Tensor) -> bool:
        """Whether the factors of a chunk agree with autograd; notes by how much."""
        found = compare(reference, layer, a, g)
        if not all(one.within(reference.noise(one.names)) for one in found if any(one.beyond)):
            return False
        self._note(layer, found)
        return True

    def _note(self, layer: PlannedLayer, found: Sequence[Comparison]) -> None:
        differences = [self.differences.get(layer.name, 0.0), *(one.difference for one in found)]
        self.differences[layer.name] = math.nan if any(math.isnan(one) for one in differences) else max(differences)

    def _by_fallback(self, layer: PlannedLayer, references: Sequence[_Certified]) -> tuple[Tensor, Tensor]:
        """Computes the Jacobian [r, n, 1, parameters] of a layer without a rule, with empty forward factors."""
        plan = self.plan
        worst = Comparison((), 0.0, [])
        self.differences.pop(layer.name, None)
        for one_by_one in (False, True):
            if plan.known.one_by_one and not one_by_one:
                continue
            try:
                j = jacobian_of(plan, layer, one_by_one=one_by_one)
            except Exception:
                if one_by_one:
                    raise
                continue  # an operation of the model has no batched form
            a = j.new_zeros(1).expand(len(plan.x), 1, 0)
            found = [(samples, compare(one, layer, a[samples], j[:, samples]), one) for samples, one in references]
            wrong = [
                one
                for samples, comparisons, reference in found
                for one in comparisons
                if any(one.beyond) and not one.within(_between_splits(plan, reference, one.names, samples))
            ]
            if not wrong:
                for _, comparisons, _ in found:
                    self._note(layer, comparisons)
                return a, j
            worst = max(wrong, key=lambda one: one.difference)
            plan.known.one_by_one = True  # the batched form of an operation is wrong
        raise ValueError(
            f"model: expected the gradients of single samples by layer {layer.name!r} to be those in a batch, got some "
            f"that differ by {worst.difference:.1e} for {', '.join(worst.names)}: samples act on one another, or the "
            "output depends on chance; leave the layer out with layers="
        )


class _Kept:
    """The factors of one layer, chunk by chunk.

    Args:
        n: The number of all samples.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._a: Tensor | None = None
        self._g: Tensor | None = None

    def add(self, samples: slice, a: Tensor, g: Tensor) -> None:
        """Adds the factors a [k, s, d] and g [r, k, s, m] of a chunk."""
        if len(a) == self.n:  # no copy
            self._a, self._g = a, g
            return
        if self._a is None or self._g is None or (self._a.shape[2] == 0 and self._g.shape[3] == 0):
            self._a, self._g = a.new_zeros(self.n, *a.shape[1:]), g.new_zeros(len(g), self.n, *g.shape[2:])
        if a.shape[2] == 0 and g.shape[3] == 0:  # not called for these samples
            return
        missing = a.shape[1] - self._a.shape[1]
        if missing > 0:  # more positions than before; those that a sample lacks have a gradient of zero
            self._a, self._g = (functional.pad(one, (0, 0, 0, missing)) for one in (self._a, self._g))
        self._a[samples, : a.shape[1]] = a
        self._g[:, samples, : a.shape[1]] = g

    def whole(self) -> tuple[Tensor, Tensor]:
        """The factors of all samples."""
        assert self._a is not None and self._g is not None
        return self._a if self._a.is_floating_point() else one_hot(self._a, self._g.dtype), self._g


def one_hot(words: Tensor, dtype: torch.dtype) -> Tensor:
    """One-hot vectors [n, s, d] of the d different words among [n, s, 1], without those that are -1."""
    different, place = torch.unique(words.squeeze(2), return_inverse=True)
    found = torch.zeros(*place.shape, len(different), dtype=dtype, device=words.device)
    found.scatter_(2, place.unsqueeze(2), 1)
    return found[:, :, 1:] if len(different) > 1 and different[0] < 0 else found.mul_(different >= 0)


def _between_splits(plan: CapturePlan, reference: Reference, names: Sequence[str], samples: slice) -> list[float]:
    """How far squared norms of autograd's own gradients are apart when samples come in two calls, for both v.

    Args:
        plan: The plan.
        reference: Autograd's side for these samples.
        names: Parameters whose gradients are taken together.
        samples: The samples, which are split in several ways.
    """
    n = samples.stop - samples.start
    sums: list[list[Tensor]] = []  # of each split, for both v
    for middle in sorted({1, n // 3, n // 2} - {0, n}):
        sums.append([torch.zeros(sum(reference.numbers[name] for name in names), dtype=torch.float64)] * 2)
        for part in (slice(0, middle), slice(middle, n)):
            with other_random_numbers(plan.x.device, plan.trace.draws):
                twin = plan.twin().model
                output = twin(plan.x[samples][part])
            by = [twin.get_parameter(name) for name in names]
            for which, v in enumerate(reference.v):
                gradients = torch.autograd.grad(output, by, v[part], retain_graph=True, materialize_grads=True)
                flat = torch.cat([one.to_dense().flatten().double().cpu() for one in gradients])
                sums[-1][which] = sums[-1][which] + flat
    found = []
    for which in (0, 1):
        of_batch = math.sqrt(sum(reference.norms[name][which] ** 2 for name in names))
        vectors = [one[which] for one in sums]
        sizes = [float(one.norm()) for one in vectors]
        distances = [float((one - vectors[0]).norm()) for one in vectors] + [abs(size - of_batch) for size in sizes]
        size, rounding = max([of_batch, *sizes]), reference.rounding(names, which)
        distance = min(max([0.0, *distances]), _MOST_BETWEEN_SPLITS * size)
        found.append(_TIMES_SPLITS * apart(size, max(distance, rounding)))
    return found


def _gradients(call: Call, layers: Sequence[PlannedLayer], cotangents: Tensor) -> dict[str, list[Tensor | None]]:
    """Computes the gradients [r, *output shape] at each use of each layer; None where a use does not reach f."""
    names = [layer.name for layer in layers if layer.name in call.uses]
    edges = [edge for name in names for edge in call.uses[name].edges]
    if not edges:
        return {}
    batched = cotangents[:, None, :].expand(-1, call.output.shape[0], -1)  # [r, n, o]
    if len(batched) == 1:
        found: Sequence[Tensor | None] = torch.autograd.grad(
            call.output, edges, batched[0], retain_graph=True, allow_unused=True
        )
        gradients = [None if g is None else g.unsqueeze(0) for g in found]
    else:
        gradients = list(_batched_gradients(call.output, edges, batched))
    result: dict[str, list[Tensor | None]] = {}
    for name in names:
        uses = len(call.uses[name].edges)
        result[name], gradients = gradients[:uses], gradients[uses:]
    return result


def _batched_gradients(
    output: Tensor, edges: Sequence[torch.autograd.graph.GradientEdge], batched: Tensor
) -> Sequence[Tensor | None]:
    try:
        with quietly_batched:
            return torch.autograd.grad(
                output, edges, batched, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except RuntimeError:
        # An operation of the model cannot be batched over cotangents.
        one_by_one: list[tuple[Tensor | None, ...]] = [
            torch.autograd.grad(output, edges, cotangent, retain_graph=True, allow_unused=True) for cotangent in batched
        ]
        by_edge = zip(*one_by_one, strict=True)
        return [None if parts[0] is None else torch.stack([g for g in parts if g is not None]) for parts in by_edge]


def _factors_of(
    call: Call, layer: PlannedLayer, gradients: Sequence[Tensor | None] | None, r: int
) -> tuple[Tensor, Tensor]:
    """Forms what is kept of a layer from one call: a [n, s, d] and g [r, n, s, m]."""
    n, uses, rule = call.output.shape[0], call.uses.get(layer.name), layer.rule
    assert rule is not None
    zeros = call.output.detach().new_zeros(1)
    if uses is None:
        return zeros.expand(n, 1, 0), zeros.expand(r, n, 1, 0)
    forward, backward = [], []
    for use, recorded in enumerate(uses.recorded):
        gradient = None if gradients is None else gradients[use]
        if gradient is None:
            gradient = zeros.expand(r, *uses.output_shapes[use])
        a, g = rule.factors(layer.module, recorded, gradient.detach())
        if a.is_floating_point() and a.dtype != g.dtype:  # under autocast
            dtype = torch.promote_types(a.dtype, g.dtype)
            a, g = a.to(dtype), g.to(dtype)
        forward.append(a)
        backward.append(g)
    a, g = (of_uses[0] if len(of_uses) == 1 else torch.cat(of_uses, -2) for of_uses in (forward, backward))
    if layer.as_jacobian:
        return zeros.expand(n, 1, 0), jacobian(a, g, bias=layer.bias).unsqueeze(2)
    return a, g
