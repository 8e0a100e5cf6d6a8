"""Alignment of every layer of a network with the labels, from one capture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahkernels.capture import DEFAULT_MEMORY_BUDGET, Layers, plan_capture
from ahkernels.outputs import Outputs, OutputSelection
from ahkernels.report import AlignmentReport
from ahkernels.statistics.cka import UNDEFINED, Labels, Measured, finish, measure


def layerwise_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Layers = None,
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
        layers: Names or patterns ("fc*") of layers; None for all that have parameters. {group: names or patterns} for
            the alignment of the kernels of groups of layers, which are sums: {"all": "*"} for that of the network.
        outputs: "all" (rows (x, i), as in the paper), "trace" (the n x n kernel summed over outputs), "sum" (of the
            sum of the outputs), an index or a sequence of indices.
        precision: "highest", "high", "medium"; None for torch.get_float32_matmul_precision().
        memory_budget: Bytes of factors held at once; a smaller one costs time.
        decomposition: Also measure the forward and the backward Gram of each layer on their own; nan for layers that
            have none, such as norms.
        progress: Show a progress bar on stderr.

    Returns:
        The report; an alignment that is not defined is nan, with a `DegenerateKernelWarning`.

    Raises:
        ValueError: TypeError or NotImplementedError for arguments that do not fit; the message names the argument.
    """
    plan = plan_capture(
        model,
        x,
        layers=layers,
        outputs=outputs,
        precision=precision,
        memory_budget=memory_budget,
        keep_factors=decomposition,
        progress=progress,
    )
    n = x.shape[0]
    labels = Labels(plan.outputs, y, n)  # raises before any work is done
    sample_labels = Labels(OutputSelection("trace", plan.outputs.total), y, n)
    names: list[str] = []
    measured: list[tuple[str, str, Measured, Labels]] = []  # what of which layer, against which labels
    numbers: list[Tensor] = []  # on the device, for one copy at the end
    for name, kernel in plan.kernels():
        names.append(name)
        together = [kernel, kernel.backward_gram()] if decomposition and kernel.factored else [kernel]
        measured += [
            (what, name, Measured.of(one), labels) for what, one in zip(("kernel", "backward"), together, strict=False)
        ]
        numbers.append(measure(together, labels))
        if len(together) > 1:
            forward = kernel.forward_gram()
            measured.append(("forward", name, Measured.of(forward), sample_labels))
            numbers.append(measure([forward], sample_labels))
    rows = torch.cat(numbers).tolist()
    found = {
        (what, name): finish(one, row, against) for (what, name, one, against), row in zip(measured, rows, strict=True)
    }

    def column(what: str, number: str) -> Tensor:
        of_layers = [found.get((what, name), UNDEFINED) for name in names]
        return torch.tensor([getattr(one, number) for one in of_layers], dtype=torch.float64)

    spec = plan.outputs.spec
    return AlignmentReport(
        layers=names,
        cka=column("kernel", "cka"),
        centered_norm=column("kernel", "centered_norm"),
        trace=column("kernel", "trace"),
        forward_cka=column("forward", "cka") if decomposition else None,
        backward_cka=column("backward", "cka") if decomposition else None,
        n=n,
        outputs=spec if isinstance(spec, (str, int)) else list(spec),
        precision=plan.precision,
    )
