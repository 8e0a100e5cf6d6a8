"""The run of a capture: the factors of as many layers in one pass as fit the memory budget together.

One pass over the model is a forward pass and a backward pass down to the first layer that is captured, with the
cotangents of all outputs batched. Samples are taken in chunks, which bounds the memory of a pass. Each chunk is
certified where that is asked for, which takes a gradient of parameters (see `ahkernels.capture.certify`). A layer
that does not fit by itself comes in several passes of its own (see `ahkernels.capture.blocks`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ahkernels.capture.backward import factors_of, gradients_of
from ahkernels.capture.blocks import KernelInBlocks
from ahkernels.capture.call import Call, call_model
from ahkernels.capture.certify import (
    ROUNDING_OF_NORMS,
    Comparison,
    Reference,
    apart,
    compare,
    explained,
    rounding_of_gradients,
)
from ahkernels.capture.evaluation import require_determined
from ahkernels.capture.fallback import jacobians
from ahkernels.capture.guard import leaving_no_trace
from ahkernels.capture.kept import Kept, Vocabulary
from ahkernels.capture.memory import return_freed_memory
from ahkernels.capture.plan import CapturePlan, PlannedLayer
from ahkernels.certificate import Certificate
from ahkernels.factors import of_one_dtype
from ahkernels.kernel import TangentKernel, kernel_of_outputs
from ahkernels.outputs import OutputSelection
from ahkernels.samples import Samples

# Gradients of samples one by one may be so many times as far from those of a batch as those of other batches are.
_TIMES_SPLITS = 10
# More than that, relative to their norm, is not rounding that flips a ReLU here and there: samples act on one another.
_MOST_BETWEEN_SPLITS = 5e-3

# Small layers that are compared with autograd together hold so small a part of what a chunk of samples may take.
_GROUPS_IN_WORK = 8

# A layer, with what is kept of some samples: its factors a and g, or an empty a and its Jacobian.
_CapturedLayer: TypeAlias = tuple[PlannedLayer, Tensor, Tensor]

# Samples, and autograd's side of the certificate for them.
_Certified: TypeAlias = tuple[slice, Reference]


@dataclass
class _ByRules:
    """A capture of layers by their rules, as far as it has come.

    Attributes:
        layers: The layers.
        with_rule: Those whose rule has not failed, by name.
        unreached: The names of those that no output has depended on so far.
        references: Autograd's side of the certificate for all layers, for each chunk that was certified.
    """

    layers: Sequence[PlannedLayer]
    with_rule: dict[str, PlannedLayer] = field(init=False)
    unreached: set[str] = field(init=False)
    references: list[_Certified] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.with_rule = {layer.name: layer for layer in self.layers if layer.rule is not None}
        self.unreached = {layer.name for layer in self.layers}


class CapturedKernel(NamedTuple):
    """A kernel that was captured.

    Attributes:
        name: Of its layer or group.
        kernel: The kernel.
        grams: A kernel whose forward and backward Gram are those of this one, if they were asked for and it has some.
    """

    name: str
    kernel: TangentKernel
    grams: TangentKernel | None


class Capture:
    """A capture under way.

    Args:
        plan: Its plan.
        samples: The samples that its kernels are over; by default those of the plan, and no others.
        vocabulary: See `Kept`.

    Attributes:
        samples: The samples that its kernels are over.
        layers: The planned layers by name; one whose rule fails has another plan from then on.
        differences: What the certificate found, by layer.
        unreached: The layers that were captured and that the output does not depend on.
    """

    def __init__(
        self, plan: CapturePlan, samples: Samples | None = None, vocabulary: Vocabulary = torch.unique
    ) -> None:
        self.plan, self._vocabulary = plan, vocabulary
        self.samples = Samples(len(plan.x)) if samples is None else samples
        self.layers = dict(plan.layers)
        self.differences: dict[str, float] = {}
        self._certifies, self._calls_ago = plan.certifies, plan.known.calls
        self.unreached: list[str] = []

    @property
    def outputs(self) -> OutputSelection:
        """The outputs that enter the kernels."""
        return self.plan.outputs

    @property
    def kinds(self) -> list[str]:
        """The type of the module of each kernel; see `CapturePlan.kinds`."""
        return self.plan.kinds

    @property
    def precision(self) -> str:
        """The precision of its kernels: "highest", "high" or "medium"."""
        return self.plan.precision

    def logits(self) -> Tensor:
        """Computes f(x) [n, o]."""
        return self.plan.logits()

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.plan.x.device

    @property
    def certificate(self) -> Certificate | None:
        """The certificate of this capture or of the last one that had one; None if none is asked for."""
        if self.plan.options.certify == 0:
            return None
        if self._certifies:
            return Certificate(dict(self.differences))
        return Certificate(dict(self.plan.known.certificate), self._calls_ago)

    def kernels(self) -> Iterator[CapturedKernel]:
        """Yields kernels in forward order, without searching the factors for nan and inf.

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
                names = plan.first_pass(rest, self.layers)
                rest = rest[len(names) :]
                captured = self._pass(plan.members(names))
                if not rest:  # before the last kernels are given out, after which nobody need come back
                    self._remember()
                for i, name in enumerate(names):
                    members = plan.groups[name]
                    later = {member for group in names[i + 1 :] for member in plan.groups[group]}
                    # No variable here refers to a kernel, which would stay in memory during the next pass.
                    yield self._kernel(name, [captured[m] if m in later else captured.pop(m) for m in members])
                    if bar is not None:
                        bar.update()
                if rest:
                    return_freed_memory()

    def _remember(self) -> None:
        """Notes a capture, with the certificate that it may have, for later ones of the same structure."""
        of_structure = self.plan.known
        if self._certifies:
            of_structure.certificate = {name: self.differences[name] for name in self.layers}
            of_structure.calls = 0
        of_structure.calls += 1

    def _kernel(self, name: str, layers: Sequence[Kept]) -> CapturedKernel:
        """The kernel of a group, from what was kept of its layers."""
        factors = of_one_dtype([one.factors for one in layers])
        kernel = kernel_of_outputs(factors, self.plan.outputs, self.plan.precision, name, self.samples)
        return CapturedKernel(name, kernel, self._with_grams(kernel, layers))

    def _with_grams(self, kernel: TangentKernel, layers: Sequence[Kept]) -> TangentKernel | None:
        """A kernel with the Grams of a group, if they are asked for and all of its layers have some."""
        if not self.plan.grams:
            return None
        found = [one.at_one_position for one in layers]
        of_layers = [one for one in found if one is not None]
        if len(of_layers) < len(layers):
            return None
        if all(one is two.factors for one, two in zip(of_layers, layers, strict=True)):
            return kernel
        return kernel_of_outputs(of_one_dtype(of_layers), self.outputs, self.precision, kernel.name, self.samples)

    @leaving_no_trace
    def _pass(self, names: Sequence[str]) -> dict[str, Kept]:
        """Captures layers, by name, in one pass over the samples; those in blocks take several of their own."""
        plan = self.plan
        in_blocks = [name for name in names if self.layers[name].in_blocks]
        together = [name for name in names if name not in in_blocks]
        kept: dict[str, Kept] = {}
        try:
            for some in ([together] if together else []) + [[name] for name in in_blocks]:
                kept |= self._captured([self.layers[name] for name in some])
        except Exception:
            plan.require_unchanged()  # or else this is the cause
            raise
        plan.require_unchanged()
        return kept

    def _captured(self, layers: Sequence[PlannedLayer]) -> dict[str, Kept]:
        """Captures layers that fit together, or a single one in blocks, by name."""
        if layers[0].in_blocks:
            run = _ByRules([layers[0].of_block])
            kept = self._in_blocks(layers[0], run)
        else:
            run = _ByRules(layers)
            kept = self._by_rules(run, self.plan.memory.samples, certifies=self._certifies)
        self.unreached += [layer.name for layer in run.layers if layer.name in run.unreached]
        return kept | self._by_fallback([layer.name for layer in layers if layer.name not in kept], run.references)

    def _in_blocks(self, layer: PlannedLayer, run: _ByRules) -> dict[str, Kept]:
        """Captures a layer with a rule by pairs of blocks of samples; nothing where its rule fails."""
        plan = self.plan
        kernel = KernelInBlocks(layer, plan.memory, grams=plan.grams)
        first_pass = True
        for rows, later in plan.memory.blocks(layer):
            of_rows: Kept | None = None
            for columns in (rows, *later):
                block = self._by_rules(run, columns, certifies=first_pass and self._certifies).pop(layer.name, None)
                if block is None:
                    continue  # the certificate of the fallback needs the rest
                of_rows = of_rows or block
                return_freed_memory()  # of a call of the model, to make room for products
                kernel.add(rows, of_rows.factors, columns, block.factors)
                if first_pass:
                    kernel.add_sums(columns, block)
                del block
                return_freed_memory()
            del of_rows
            if not run.with_rule:
                return {}
            first_pass = False
        return {layer.name: kernel.kept()}

    def _by_rules(self, run: _ByRules, block: slice, *, certifies: bool) -> dict[str, Kept]:
        """Captures layers for a block of samples by their rules, by name.

        A layer whose rule fails is left out and planned anew.
        """
        plan, with_rule = self.plan, run.with_rule
        kept = {
            name: Kept(block.stop - block.start, one, grams=plan.grams, vocabulary=self._vocabulary)
            for name, one in with_rule.items()
        }

        def drop(failing: set[str]) -> None:
            for name in failing & set(with_rule):
                del kept[name]
                self.layers[name] = plan.without_rule(with_rule.pop(name))
                plan.known.without_rule.add(name)

        for samples in plan.memory.chunks(list(with_rule.values()), block):
            if not with_rule and not certifies:
                run.unreached.clear()  # it is not known which they are
                break
            with plan.other_random_numbers():
                call = call_model(plan.forward, plan.twin(), plan.x[samples], list(with_rule.values()))
            require_determined(plan, samples, call.output.detach(), thoroughly=certifies)
            run.unreached -= {layer.name for layer in run.layers if call.reaches(layer)}
            drop({name for name, layer in with_rule.items() if not call.by_uses_alone(layer)})
            if certifies:
                reference = Reference(call, run.layers, set(with_rule), plan.cotangents, plan.memory.work)
                run.references.append((samples, reference))
                drop(reference.mixed)
            of_block = slice(samples.start - block.start, samples.stop - block.start)
            layers = [(layer, kept[name]) for name, layer in with_rule.items()]
            for captured in self._factors_of_call(call, of_block, layers):
                if certifies:
                    drop(self._failing(reference, captured))
                del captured  # before the next ones
            if certifies:
                reference.release()
            del call
        return kept

    def _factors_of_call(
        self, call: Call, samples: slice, layers: Sequence[tuple[PlannedLayer, Kept]]
    ) -> Iterator[list[_CapturedLayer]]:
        """Forms the factors of layers from a call on a chunk of samples and keeps them.

        Yields:
            What was kept, a few layers at a time: where they are small, they are compared with autograd together.
        """
        plan = self.plan
        gradients = gradients_of(call, [layer for layer, _ in layers], plan.cotangents)
        found: list[_CapturedLayer] = []
        held = 0
        for layer, kept in layers:
            a, g = kept.add(samples, *factors_of(call, layer, gradients.pop(layer.name, None), plan.outputs.rows))
            if found and held + a.nbytes + g.nbytes > plan.memory.work // _GROUPS_IN_WORK:
                yield found
                found, held = [], 0
            found.append((layer, a, g))
            held += a.nbytes + g.nbytes
            del a, g
        if found:
            yield found

    def _failing(self, reference: Reference, captured: Sequence[_CapturedLayer]) -> set[str]:
        """The layers whose factors of a chunk do not agree with autograd; notes by how much the others differ."""
        failing = set()
        for (layer, _, _), found in zip(captured, compare(reference, captured), strict=True):
            if all(explained(one, reference, layer) for one in found):
                self._note(layer, found)
            else:
                failing.add(layer.name)
        return failing

    def _note(self, layer: PlannedLayer, found: Sequence[Comparison]) -> None:
        differences = [self.differences.get(layer.name, 0.0), *(one.difference for one in found)]
        self.differences[layer.name] = math.nan if any(math.isnan(one) for one in differences) else max(differences)

    def _by_fallback(self, names: Sequence[str], references: Sequence[_Certified]) -> dict[str, Kept]:
        """Captures layers without a rule; those whose batched gradients are wrong, or cannot be had, one by one."""
        plan = self.plan
        kept: dict[str, Kept] = {}
        rest = list(names)
        worst: dict[str, Comparison] = {}
        for one_by_one in (True,) if plan.known.one_by_one else (False, True):
            layers = [self.layers[name] for name in rest]
            try:
                found = jacobians(plan, layers, one_by_one=one_by_one) if layers else {}
            except Exception:
                if one_by_one:
                    raise
                continue  # an operation of the model has no batched form
            for layer in layers:
                rounding = ROUNDING_OF_NORMS if one_by_one else 1
                worst[layer.name] = self._agrees_in_batches(layer, found[layer.name], references, rounding)
                if not worst[layer.name].names:
                    kept[layer.name] = Kept(len(plan.x), layer, grams=False)
                    kept[layer.name].add_jacobian(found.pop(layer.name))
            rest = [name for name in rest if name not in kept]
            plan.known.one_by_one |= bool(rest)  # the batched form of an operation is wrong
        for name in rest:
            raise ValueError(
                f"model: expected the gradients of single samples by layer {name!r} to be those in a batch, got some "
                f"that differ by {worst[name].difference:.1e} for {', '.join(worst[name].names)}: samples act on one "
                f"another, or the output depends on chance; write layers=[...] without {name!r}"
            )
        return kept

    def _agrees_in_batches(
        self, layer: PlannedLayer, j: Tensor, references: Sequence[_Certified], rounding: float
    ) -> Comparison:
        """Compares a Jacobian with autograd in all chunks; returns the worst disagreement, without names for none.

        Args:
            layer: The layer.
            j: Its Jacobian [r, n, 1, parameters].
            references: Autograd's side of all chunks.
            rounding: How many times the rounding of gradients may be what is left of them.
        """
        worst = Comparison((), 0.0, 0.0)
        self.differences.pop(layer.name, None)
        for samples, reference in references:
            own = (layer, j.new_zeros(1).expand(j.shape[1], 1, 0)[samples], j[:, samples])
            (found,) = compare(reference, [own])
            for one in found:
                if one.beyond and one.beyond > _between_splits(self.plan, reference, one, samples, rounding):
                    worst = max(worst, one, key=lambda which: which.difference)
            self._note(layer, found)
        return worst


def _between_splits(
    plan: CapturePlan, reference: Reference, found: Comparison, samples: slice, rounding: float
) -> float:
    """How far squared norms of autograd's own gradients are apart when samples come in two calls.

    Args:
        plan: The plan.
        reference: Autograd's side for these samples.
        found: A comparison of parameters, whose gradients are taken together.
        samples: The samples, which are split in several ways.
        rounding: How many times the rounding of gradients may be what is left of them.
    """
    n = samples.stop - samples.start
    names = found.names
    sums: list[Tensor] = []  # of each split
    by_scales = 0.0
    for middle in sorted({1, n // 3, n // 2} - {0, n}) or [n]:
        whole = torch.zeros(sum(reference.numbers[name] for name in names), dtype=torch.float64)
        for part in itertools.starmap(slice, itertools.pairwise(sorted({0, middle, n}))):
            with plan.other_random_numbers():
                twin = plan.twin().model
                output = plan.forward(twin, plan.x[samples][part])
            by = [twin.get_parameter(name) for name in names]
            v = reference.v[part]
            gradients = torch.autograd.grad(output, by, v, retain_graph=True, materialize_grads=True)
            if found.gross:
                by_scales = math.hypot(by_scales, rounding_of_gradients(output, by, v)[1])
            whole += torch.cat([one.to_dense().flatten().double().cpu() for one in gradients])
        sums.append(whole)
    of_batch = math.sqrt(sum(reference.norms[name] ** 2 for name in names))
    sizes = [float(one.norm()) for one in sums]
    distances = [float((one - sums[0]).norm()) for one in sums] + [abs(size - of_batch) for size in sizes]
    size = max([of_batch, *sizes])
    distance = min(max([0.0, *distances]), _MOST_BETWEEN_SPLITS * size)
    of_rounding = by_scales if found.gross else rounding * reference.rounding(names)
    return _TIMES_SPLITS * apart(size, max(distance, of_rounding))
