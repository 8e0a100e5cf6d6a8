"""A capture over several processes, each with some of the samples.

Each process captures its own samples as it would alone. All go from kernel to kernel together: before one is handed
out, they tell one another of what form its factors are, or of an error. What they measure must be the same model, which
is looked at before any work is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ahkernels.capture.batch import Batch, Inputs, is_empty
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.plan import CapturePlan, plan_capture
from ahkernels.capture.run import Capture, CapturedKernel
from ahkernels.capture.wrappers import unwrapped, without_wrappers
from ahkernels.certificate import Certificate
from ahkernels.distributed.group import Group, KnownError
from ahkernels.distributed.samples import ShardedSamples
from ahkernels.distributed.whole import whole_model
from ahkernels.factors import LayerFactors
from ahkernels.kernel import TangentKernel
from ahkernels.outputs import OutputSelection
from ahkernels.precision import resolve_precision

# While the samples of two processes meet, each has its own factors of a layer once more, and those of the other twice.
# With this part of the budget for the capture, of which three quarters are kept, a layer four times over fits it.
_SHARE_OF_CAPTURE = 1 / 3


@dataclass(frozen=True)
class ShardedPlan:
    """A capture on all ranks of a group, whose arguments have been checked on each of them.

    Attributes:
        group: The group.
        own: The plan of this rank; None where it has no sample.
        device: Where the model of this rank is.
        counts: The number of samples of each rank.
        kernels: The names of the kernels, in forward order.
        kinds: The type of the module of each kernel; see `CapturePlan.kinds`.
        outputs: The outputs that enter the kernels.
        precision: The precision of the kernels.
    """

    group: Group
    own: CapturePlan | None
    device: torch.device
    counts: list[int]
    kernels: list[str]
    kinds: list[str]
    outputs: OutputSelection
    precision: str


def plan_together(
    model: nn.Module,
    x: Inputs,
    options: CaptureOptions,
    arguments: dict[str, Any],
    *,
    keep_factors: bool = False,
    grams: bool = False,
    evaluating: bool = False,
) -> ShardedPlan:
    """Plans a capture on all ranks of a group, each with its samples.

    Args:
        model: The network, the same on all ranks.
        x: The samples of this rank.
        options: What the user chose, with a process group.
        arguments: What else must be the same on all ranks, by its name.
        keep_factors: See `plan_capture`, as for all that follow.
        grams: Whether forward and backward Grams are asked for.
        evaluating: Whether to measure the network in eval mode.

    Raises:
        ValueError: On all ranks, if ranks differ in what they measure; the message names the argument.
        RankError: If another rank has raised an error.
    """
    group = Group.of(options.process_group)
    model = group.everywhere(lambda: without_wrappers(model))
    n, told = group.collect(lambda: told_of_call(x, options, {**arguments, "keep_factors": keep_factors}))
    require_alike(told, [rank for rank, _ in enumerate(told)])
    counts = [one["samples"] for one in told]
    if not any(counts):
        raise ValueError("x: expected at least one sample on some rank, got none on any")
    model = whole_model(model)
    own = replace(
        options,
        memory_budget=max(1, int(_SHARE_OF_CAPTURE * options.memory_budget)),
        progress=options.progress and group.rank == 0,
        shard="samples",
    )

    def planned() -> tuple[CapturePlan | None, dict[str, Any]]:
        numbers = told_of_numbers(unwrapped(model))
        if n == 0:
            return None, {"same": {"model": numbers}}
        how = {"keep_factors": keep_factors, "grams": grams, "evaluating": evaluating, "most": max(counts)}
        plan = plan_capture(model, x, own, **how)
        _require_room(plan)
        return plan, _told_of_plan(plan, numbers)

    plan, plans = group.collect(planned)
    with_samples = [rank for rank, count in enumerate(counts) if count]
    require_alike(plans, [*with_samples, *(rank for rank, count in enumerate(counts) if not count)])
    found = plans[with_samples[0]]
    return ShardedPlan(
        group,
        plan,
        next(unwrapped(model).parameters()).device,
        counts,
        list(found["kernels"]),
        list(found["kinds"]),
        OutputSelection(options.outputs, found["outputs"]),
        resolve_precision(options.precision),
    )


class ShardedCapture:
    """A capture under way on all ranks of a group; see `Capture`.

    Args:
        plan: Its plan.

    Attributes:
        samples: The samples of all ranks.
        device: Where the model of this rank is.
        outputs: The outputs that enter the kernels.
        precision: The precision of its kernels.
        kinds: The type of the module of each kernel; see `CapturePlan.kinds`.
        certificate: Once all kernels have been taken, the largest differences of any rank.
        unreached: Then, the layers that the output does not depend on at any sample.
    """

    def __init__(self, plan: ShardedPlan) -> None:
        self._group, self._plan, self._kernels, self.device = plan.group, plan.own, plan.kernels, plan.device
        self.samples = ShardedSamples(plan.group, plan.counts)
        self.outputs, self.precision, self.kinds = plan.outputs, plan.precision, plan.kinds
        self._capture = None if plan.own is None else Capture(plan.own, self.samples, self._vocabulary)
        self._name = ""  # of the kernel under way
        self.certificate: Certificate | None = None
        self.unreached: list[str] = []

    def logits(self) -> Tensor:
        """Computes f(x) [n, o] of the samples here."""
        nothing = torch.empty(0, self.outputs.total, device=self.device)
        return self._group.everywhere(lambda: nothing if self._plan is None else self._plan.logits())

    def kernels(self) -> Iterator[CapturedKernel]:
        """Yields kernels in forward order; see `Capture.kernels`."""
        captured = None if self._capture is None else self._capture.kernels()
        for name in self._kernels:
            self._name = name
            own, told = self._next(captured)
            yield self._alike(name, own, told)
            del own  # before the next pass
        if captured is not None:
            next(captured, None)  # its progress bar ends
        self._finish()

    def _next(self, captured: Iterator[CapturedKernel] | None) -> tuple[CapturedKernel | None, list[Any]]:
        """The next kernel of this rank, if it has samples, and what all ranks tell of theirs."""
        if captured is None:
            while True:
                told = self._group.exchange(None)
                if not self._at_words(told):
                    return None, told

        def own() -> tuple[CapturedKernel, dict[str, Any]]:
            found = next(captured)
            return found, _told_of_kernel(found)

        return self._group.collect(own)

    def _vocabulary(self, words: Tensor) -> Tensor:
        """The different words of all ranks, in order."""
        told = self._group.exchange({"words": torch.unique(words).tolist()})
        self._at_words(told)
        others = [one for one in told if one is not None]
        return torch.tensor(sorted({word for one in others for word in one["words"]}), device=words.device)

    def _at_words(self, told: Sequence[Any]) -> bool:
        """Whether the ranks have told of the words of an embedding; raises on all of them if some alone have."""
        having = {rank: "words" in one for rank, one in enumerate(told) if one is not None}
        if len(set(having.values())) > 1:
            some = ", ".join(str(rank) for rank, words in having.items() if words)
            raise KnownError(
                f"model: expected layer {self._name!r} to be captured alike on all ranks, got an embedding with its "
                f"words on rank {some} alone"
            )
        return any(having.values())

    def _alike(self, name: str, own: CapturedKernel | None, told: Sequence[Any]) -> CapturedKernel:
        """The kernel of this rank in the form that all ranks give it."""
        self._at_words(told)
        with_samples = {rank: one for rank, one in enumerate(told) if one is not None}
        kernel = self._kernel(
            name, own.kernel if own else None, {rank: one["kernel"] for rank, one in with_samples.items()}
        )
        grams = [one["grams"] for one in with_samples.values()]
        if all(one == "kernel" for one in grams):
            return CapturedKernel(name, kernel, kernel)
        if any(one is None for one in grams):
            return CapturedKernel(name, kernel, None)
        of_grams = {rank: one["grams"] for rank, one in with_samples.items()}
        return CapturedKernel(name, kernel, self._kernel(name, own.grams if own else None, of_grams))

    def _kernel(self, name: str, own: TangentKernel | None, told: dict[int, Any]) -> TangentKernel:
        """A kernel whose layers have the same shapes on all ranks."""
        layers = []
        for index, wanted in enumerate(next(iter(told.values()))):
            of_ranks = {rank: one[index] for rank, one in told.items()}
            called = {rank: one for rank, one in of_ranks.items() if (one["d"], one["m"]) != (0, 0)} or of_ranks
            wanted = next(iter(called.values()))
            for rank, one in called.items():
                _require_form(name, wanted, one, next(iter(called)), rank)
            s = max(one["s"] for one in of_ranks.values())
            layers.append(_padded(own.factors[index] if own else None, wanted, s, self.device))
        return TangentKernel(layers, self.outputs, self.precision, name, self.samples)

    def _finish(self) -> None:
        capture = self._capture
        certificate = None if capture is None or capture.certificate is None else capture.certificate.to_dict()
        told = self._group.exchange(
            None if capture is None else {"certificate": certificate, "unreached": capture.unreached}
        )
        of_ranks = [one for one in told if one is not None]
        unreached = [set(one["unreached"]) for one in of_ranks]
        self.unreached = [name for name in of_ranks[0]["unreached"] if all(name in one for one in unreached)]
        found = [Certificate.from_dict(one["certificate"]) for one in of_ranks if one["certificate"] is not None]
        if found:
            names = found[0].differences
            largest = {name: max(one.differences.get(name, 0.0) for one in found) for name in names}
            self.certificate = Certificate(largest, max(one.calls_ago for one in found))


def told_of_call(x: Inputs, options: CaptureOptions, arguments: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The number of samples here, and what each rank tells of its call."""
    n = 0 if is_empty(x) else len(Batch(x))
    own = ("output", "progress", "process_group")  # may differ from rank to rank, or cannot be compared
    chosen = {one.name: str(getattr(options, one.name)) for one in fields(options) if one.name not in own}
    return n, {"samples": n, "same": {**{name: str(one) for name, one in arguments.items()}, **chosen}}


def told_of_numbers(model: nn.Module) -> list[str]:
    """Each parameter and buffer with a checksum of its bits."""
    return [
        f"{name} ({str(one.dtype).removeprefix('torch.')} {list(one.shape)}, checksum {_checksum(one)})"
        for name, one in (*model.named_parameters(), *model.named_buffers())
    ]


def _checksum(tensor: Tensor) -> int:
    """A number that is the same for the same bits."""
    bits = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = functional.pad(bits, (0, -len(bits) % 8)).view(torch.int64)
    return int(words.sum())  # which wraps around


def _told_of_plan(plan: CapturePlan, numbers: list[str]) -> dict[str, Any]:
    return {
        "outputs": plan.outputs.total,
        "kernels": list(plan.groups),
        "kinds": plan.kinds,
        "same": {
            "layers": [f"{one.name} ({type(one.module).__name__}, {one.route.name})" for one in plan.layers.values()],
            "outputs": f"{plan.outputs.total} outputs of the model",
            "model": numbers,
        },
    }


def _told_of_kernel(captured: CapturedKernel) -> dict[str, Any]:
    grams = captured.grams
    of_grams = "kernel" if grams is captured.kernel else None if grams is None else _told_of_factors(grams)
    return {"kernel": _told_of_factors(captured.kernel), "grams": of_grams}


def _told_of_factors(kernel: TangentKernel) -> list[dict[str, Any]]:
    for one in kernel.factors:
        if one.root is not None:
            raise ValueError(_NO_ROOM.format(name=one.layer))
    return [
        {
            "layer": one.layer,
            "s": one.positions,
            "d": one.forward.shape[2],
            "m": one.backward.shape[3],
            "o": one.o,
            "bias": bool(one.bias),
            "by_jacobian": one.by_jacobian,
            "dtype": str(one.forward.dtype).removeprefix("torch."),
        }
        for one in kernel.factors
    ]


_NO_ROOM = (
    "memory_budget: expected room for the factors or the Jacobian of layer {name!r} on each rank, got too little; pass "
    "a larger one, or spread the samples over more processes"
)


def _require_room(plan: CapturePlan) -> None:
    for layer in plan.layers.values():
        if layer.alone:
            raise ValueError(_NO_ROOM.format(name=layer.name))


def require_alike(told: Sequence[Any], ranks: Sequence[int]) -> None:
    """Raises ValueError naming the first thing in which some ranks differ, the same on each of them."""
    first = told[ranks[0]]["same"]
    for rank in ranks[1:]:
        other = told[rank]["same"]
        for what in first:
            if what in other and other[what] != first[what]:
                wanted, got = _first_difference(first[what], other[what])
                remedy = "; broadcast parameters and buffers from one rank before" if what == "model" else ""
                raise ValueError(
                    f"{what}: expected {wanted} on every rank, as on rank {ranks[0]}, got {got} on rank {rank}{remedy}"
                )


def _first_difference(wanted: Any, got: Any) -> tuple[Any, Any]:
    """Two values, or of two lists the first entries that differ."""
    if not (isinstance(wanted, list) and isinstance(got, list)):
        return wanted, got
    for one, other in zip(wanted, got, strict=False):
        if one != other:
            return one, other
    return f"{len(wanted)} of them", f"{len(got)} of them"


def _require_form(name: str, wanted: dict[str, Any], got: dict[str, Any], rank: int, other: int) -> None:
    for what in wanted:
        if what != "s" and wanted[what] != got[what]:
            raise ValueError(
                f"model: expected layer {name!r} to be captured alike on all ranks, got {what} = {wanted[what]} on "
                f"rank {rank} and {got[what]} on rank {other}"
            )


def _padded(own: LayerFactors | None, wanted: dict[str, Any], s: int, device: torch.device) -> LayerFactors:
    """Factors with s positions; those that samples lack have a gradient of zero."""
    dtype = getattr(torch, wanted["dtype"])
    n = 0 if own is None else own.n
    if own is None or (own.forward.shape[2] == 0 == own.backward.shape[3] != wanted["m"]):  # not called for them
        a = torch.zeros(n, s, wanted["d"], dtype=dtype, device=device)
        g = torch.zeros(n, s, wanted["o"], wanted["m"], dtype=dtype, device=device)
        return LayerFactors(a, g, wanted["bias"], wanted["layer"], wanted["by_jacobian"], unchecked=True)
    missing = s - own.positions
    if missing == 0:
        return own
    a, g = functional.pad(own.forward, (0, 0, 0, missing)), functional.pad(own.backward, (0, 0, 0, 0, 0, missing))
    return replace(own, forward=a, backward=g, unchecked=True)
