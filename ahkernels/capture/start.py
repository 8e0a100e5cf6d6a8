"""Starts a capture, in this process alone or together with others."""

from __future__ import annotations

from typing import Any

from torch import nn

from ahkernels.capture.batch import Inputs
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.plan import plan_capture
from ahkernels.capture.run import Capture
from ahkernels.capture.sharded import ShardedCapture, plan_together


def start_capture(
    model: nn.Module,
    x: Inputs,
    options: CaptureOptions,
    *,
    keep_factors: bool = False,
    grams: bool = False,
    evaluating: bool = False,
    arguments: dict[str, Any] | None = None,
) -> Capture | ShardedCapture:
    """Plans a capture; with a process group, all of its ranks do so together.

    Args:
        model: See `plan_capture`, as for all that follow.
        x: The samples, or those of this rank.
        options: What the user chose.
        keep_factors: Whether the factors are kept also where the Jacobian is smaller.
        grams: Whether forward and backward Grams are asked for.
        evaluating: Whether to measure the network in eval mode, whatever mode it is in.
        arguments: What else must be the same on all ranks, by the names of the user's arguments.

    Raises:
        ValueError: See `plan_capture` and `plan_together`.
        TypeError: See `plan_capture`.
    """
    how = {"keep_factors": keep_factors, "grams": grams, "evaluating": evaluating}
    if options.shard == "layers":
        raise ValueError(
            'shard: expected "samples" where kernels are returned or no process group is given, got "layers", which '
            "is for reports of several processes"
        )
    if options.process_group is None:
        return Capture(plan_capture(model, x, options, **how))
    return ShardedCapture(plan_together(model, x, options, arguments or {}, **how))
