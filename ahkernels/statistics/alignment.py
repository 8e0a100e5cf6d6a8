"""Alignment of every layer of a network with the labels, from one capture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture import DEFAULT_MEMORY_BUDGET, plan_capture
from ahkernels.outputs import Outputs, OutputSelection
from ahkernels.report import AlignmentReport
from ahkernels.statistics.cka import Labels, Measured, finish, measure


def layerwise_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: str | Sequence[str] | None = None,
    outputs: Outputs = "all",
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    decomposition: bool = False,
    progress: bool = False,
) -> AlignmentReport:
    """Alignment A_l of each layer's tangent kernel with the labels (equation 7 of the paper).

    No Jacobian is formed and no kernel is held in memory. The model is left as it was, also after an error.

    Args:
        model: A network whose samples are independent given its parameters, f(x) of shape [n, o].
        x: Inputs [n, ...].
        y: Class indices [n] or a target matrix [n, o].
        layers: Names or patterns ("fc*") of layers; None for all that have parameters.
        outputs: "all" (rows (x, i), as in the paper), "trace" (the n x n kernel summed over outputs), "sum" (of the
            sum of the outputs), an index or a sequence of indices.
        precision: "highest", "high", "medium"; None for torch.get_float32_matmul_precision().
        memory_budget: Bytes of factors held at once; a smaller one costs time.
        decomposition: Also measure the forward and the backward Gram of each layer on their own.
        progress: Show a progress bar on stderr.

    Returns:
        The report; an alignment that is not defined is nan, with a `DegenerateKernelWarning`.

    Raises:
        ValueError: TypeError or NotImplementedError for arguments that do not fit; the message names the argument.
    """
    plan = plan_capture(
        model, x, layers=layers, outputs=outputs, precision=precision, memory_budget=memory_budget, progress=progress
    )
    n = x.shape[0]
    labels = Labels(plan.outputs, y, n)  # raises before any work is done
    sample_labels = Labels(OutputSelection("trace", plan.outputs.total), y, n)
    names: list[str] = []
    measured: list[tuple[Measured, Labels]] = []
    numbers: list[Tensor] = []  # on the device, for one copy at the end
    for name, kernel in plan.kernels():
        names.append(name)
        together = [kernel, kernel.backward_gram()] if decomposition else [kernel]
        measured += [(Measured.of(one), labels) for one in together]
        numbers.append(measure(together, labels))
        if decomposition:
            forward = kernel.forward_gram()
            measured.append((Measured.of(forward), sample_labels))
            numbers.append(measure([forward], sample_labels))
    rows = torch.cat(numbers).tolist()
    found = [finish(one, row, against) for (one, against), row in zip(measured, rows, strict=True)]
    of_layers = found[:: 3 if decomposition else 1]
    cka, centered_norm, trace = (torch.tensor(column, dtype=torch.float64) for column in zip(*of_layers, strict=True))
    spec = plan.outputs.spec
    return AlignmentReport(
        layers=names,
        cka=cka,
        centered_norm=centered_norm,
        trace=trace,
        forward_cka=torch.tensor([one.cka for one in found[2::3]], dtype=torch.float64) if decomposition else None,
        backward_cka=torch.tensor([one.cka for one in found[1::3]], dtype=torch.float64) if decomposition else None,
        n=n,
        outputs=spec if isinstance(spec, (str, int)) else list(spec),
        precision=plan.precision,
    )
