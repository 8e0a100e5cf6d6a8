"""Alignment of every layer of a network with the labels, from one capture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture import DEFAULT_MEMORY_BUDGET, plan_capture
from ahkernels.outputs import Outputs, OutputSelection
from ahkernels.report import AlignmentReport
from ahkernels.statistics.cka import label_alignment


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
    labels = plan.outputs.labels(y, x.shape[0])  # raises before any work is done
    sample_labels = OutputSelection("trace", plan.outputs.total).labels(y, x.shape[0])
    names: list[str] = []
    rows: list[list[float]] = []
    for name, kernel in plan.kernels():
        found = label_alignment([kernel, kernel.backward_gram()] if decomposition else [kernel], labels)
        names.append(name)
        rows.append(list(found[0]))
        if decomposition:
            rows[-1] += [label_alignment([kernel.forward_gram()], sample_labels)[0].cka, found[1].cka]
    spec = plan.outputs.spec
    columns = torch.tensor(rows, dtype=torch.float64).T
    return AlignmentReport(
        layers=names,
        cka=columns[0],
        centered_norm=columns[1],
        trace=columns[2],
        forward_cka=columns[3] if decomposition else None,
        backward_cka=columns[4] if decomposition else None,
        n=x.shape[0],
        outputs=spec if isinstance(spec, (str, int)) else list(spec),
        precision=plan.precision,
    )
