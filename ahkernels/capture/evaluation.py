"""Two evaluations of the model on the same samples find chance, and samples that act on one another.

The first is that of the trace, on a few samples. The second is that of the capture, in which these samples come with
others, and from another state of random numbers. A third one, on a single other sample, finds a sample that acts on all
others and is among those of the trace.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from ahkernels.capture.batch import Batch, rows_of
from ahkernels.capture.call import explained_for_one
from ahkernels.capture.plan import CapturePlan
from ahkernels.capture.trace import another_sample, few_samples

_TIMES = 32  # evaluations of a model that draws random numbers
_TIMES_ROUNDING = 100  # how far outputs may be apart where rounding of the inputs alone moves them
_ROUNDING = 16  # how many roundings of the largest output may be in a smaller one
# How far two outputs may be apart, relative to the largest of their column.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
# Where outputs are looked at again if they differ by more.
_FINER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}


def require_determined(plan: CapturePlan, samples: slice, output: Tensor, *, thoroughly: bool) -> None:
    """Checks that outputs depend on their own sample alone, and not on chance.

    Args:
        plan: The plan, with the outputs of the samples of its trace.
        samples: A chunk of samples that the capture evaluated.
        output: Their outputs [k, o].
        thoroughly: Whether to evaluate another sample alone, and all of them more often if the model draws random
            numbers.

    Raises:
        ValueError: If they do not; the message says which it is.
    """
    few = few_samples(len(plan.x))
    if thoroughly and plan.trace.draws and samples.start == 0:  # chance may seldom have an effect
        _require_no_chance(plan, output, _outputs(plan, [plan.x[samples]]))
        _require_no_chance(plan, plan.trace.output, _outputs(plan, [plan.x[few]] * _TIMES))
    _require_alone(plan, samples, output, few, plan.trace.output)
    another = another_sample(len(plan.x))
    if thoroughly and samples.start <= another < samples.stop:
        alone = []
        with suppress(Exception):  # there may be a .squeeze() in forward, which fails for one sample
            alone = _outputs(plan, [plan.x[[another]]])
        for of_another in alone:
            _require_alone(plan, samples, output, [another], of_another)


def _require_no_chance(plan: CapturePlan, output: Tensor, again: Sequence[Tensor]) -> None:
    sizes = output.abs().amax(0).double()
    if not all(_same(output, one, plan.trace.dtype, sizes=sizes) for one in again):
        raise ValueError(
            "model: expected a deterministic network, got outputs that differ between two calls with the same samples; "
            "call model.eval() first, and take chance (such as dropout) out of forward"
        )


def _require_alone(plan: CapturePlan, samples: slice, output: Tensor, few: list[int], of_few: Tensor) -> None:
    """Raises ValueError unless a few samples have the outputs that they have among all samples of a chunk."""
    both = [place for place, index in enumerate(few) if samples.start <= index < samples.stop]
    in_chunk = [few[place] - samples.start for place in both]
    dtype = plan.trace.dtype
    same = functools.partial(_same, sizes=torch.cat((plan.trace.output, of_few)).abs().amax(0).double())
    if same(rows_of(of_few, both), rows_of(output, in_chunk), dtype):
        return
    _require_no_chance(plan, of_few, _outputs(plan, [plan.x[few]]))
    if same(
        rows_of(of_few, both),
        rows_of(output, in_chunk),
        dtype,
        _TIMES_ROUNDING * _effect_of_rounding(plan, few, of_few),
    ):
        return
    finer = _FINER.get(dtype)
    with suppress(RuntimeError):  # the model may insist on its dtype
        if finer is not None:
            alone, among_all = _outputs(plan, [plan.x[few], plan.x[samples]], finer)
            if same(rows_of(alone, both), rows_of(among_all, in_chunk), alone.dtype):
                return  # rounding alone, as where it sends a sample to another expert
    raise ValueError(
        "model: expected outputs that depend on their own sample alone, got others when only some of the samples are "
        "given: samples act on one another, as in attention across the first dimension (write batch_first=True) or a "
        "norm over the batch (write nn.LayerNorm, say)"
    )


def _effect_of_rounding(plan: CapturePlan, few: list[int], of_few: Tensor) -> Tensor | float:
    """How far each output moves at most when inputs are changed in their last digits, as in chaotic networks."""
    x = plan.x[few]
    if not any(one.is_floating_point() for one in x.tensors):
        return 0.0
    generator = torch.Generator("cpu").manual_seed(0)

    def moved_by_rounding(values: Tensor) -> Tensor:
        signs = torch.randn(values.shape, generator=generator, device="cpu").sign().to(values)
        return values * (1 + 2 * torch.finfo(values.dtype).eps * signs)

    (moved,) = _outputs(plan, [x.map_floats(moved_by_rounding)])
    return (moved - of_few).abs().amax(0).double()


def _outputs(plan: CapturePlan, inputs: Sequence[Batch], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The outputs of a twin for each of several inputs, each from another state of random numbers.

    With a dtype, the twin and all inputs have it, and there is no autocast around the call.
    """
    forward = plan.forward if dtype is None else replace(plan.forward, autocast=None)
    found: list[Tensor] = []
    with plan.other_random_numbers():
        for given in inputs:
            x = given if dtype is None else given.map_floats(lambda one: one.to(dtype))
            twin = plan.twin(dtype)
            twin.advance(len(found))
            with explained_for_one(forward, plan.twin, x):
                output = forward(twin.model, x)
            found.append(output.detach())  # with gradients until here, which some models need on the way
    return found


def _same(found: Tensor, again: Tensor, dtype: torch.dtype, rounding: Tensor | float = 0.0, *, sizes: Tensor) -> bool:
    """Whether outputs are the same, relative to the size of their column."""
    if found.shape != again.shape:
        return False
    if len(found) == 0:
        return True
    # Small outputs beside large ones are held to their own size.
    of_largest = _ROUNDING * torch.finfo(torch.float64).eps * sizes.max()
    apart = (found.double() - again.double()).abs()
    close = (apart <= _TOLERANCE[dtype] * sizes + of_largest + rounding).all()
    return bool(close | ~torch.isfinite(found).all())  # what is not finite the measurement says by itself
