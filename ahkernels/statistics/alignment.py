"""Alignment of every layer of a network with the labels, and what goes with it, from one capture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ahkernels.capture import DEFAULT_MEMORY_BUDGET, Layers, plan_capture
from ahkernels.kernel import TangentKernel
from ahkernels.outputs import Outputs, OutputSelection
from ahkernels.report import AlignmentReport
from ahkernels.statistics.cka import UNDEFINED, Alignment, Labels, Measured, finish, inner_product, measure
from ahkernels.statistics.estimate import estimate_frobenius_norm, estimated_numbers, require_products
from ahkernels.statistics.fisher import fisher_kernel
from ahkernels.statistics.spectrum import largest_eigenvalue

# Each statistic beside the alignment: which kernel of the layer it is of, and what of its `Alignment` it is.
_STATISTICS = {
    "forward_cka": ("forward", "cka"),
    "backward_cka": ("backward", "cka"),
    "stable_rank": ("kernel", "stable_rank"),
    "label_correlation": ("kernel", "label_correlation"),
    "fisher_stable_rank": ("fisher", "stable_rank"),
    "fisher_label_correlation": ("fisher", "label_correlation"),
}

_BATCH_BYTES = 32 << 20  # of the factors of layers that are measured by one op


def layerwise_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    statistics: Sequence[str] = ("cka",),
    products: int | None = None,
    progress: bool = False,
) -> AlignmentReport:
    """Alignment A_l of each layer's tangent kernel with the labels (equation 7 of the paper), and what is asked beside.

    No Jacobian is formed and no kernel is held in memory; the network is captured once for all statistics. The model is
    left as it was, also after an error.

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
        statistics: What to measure of each kernel; the alignment with ||C K C||_F and trace is always there.
            "cka": that alone. "forward_cka", "backward_cka": alignment of the forward and of the backward Gram on its
            own, nan for layers that have none, such as norms. "stable_rank", "label_correlation": what the alignment
            splits into (appendix G.1). "fisher_stable_rank", "fisher_label_correlation": the same of the layer's
            Fisher information under cross-entropy, not centered (appendix G.4, G.5; for `outputs` "all").
        products: None for exact norms, from all entries of each kernel. A number, to estimate them from so many
            products with it (see `estimate_frobenius_norm`), for when the exact pass takes too long; the report then
            has `cka_error`.
        progress: Show a progress bar on stderr.

    Returns:
        The report; an alignment that is not defined is nan, with a `DegenerateKernelWarning`.

    Raises:
        ValueError: TypeError or NotImplementedError for arguments that do not fit; the message names the argument.
    """
    wanted = _require_statistics(statistics)
    kinds = {_STATISTICS[name][0] for name in wanted}
    if products is not None:
        require_products(products)
    plan = plan_capture(
        model,
        x,
        layers=layers,
        outputs=outputs,
        precision=precision,
        memory_budget=memory_budget,
        keep_factors=bool(kinds & {"forward", "backward"}),
        progress=progress,
    )
    labels = Labels(plan.outputs, y, x.shape[0])  # raises before any work is done
    of_samples = Labels(OutputSelection("trace", plan.outputs.total), y, x.shape[0]) if "forward" in kinds else labels
    if "fisher" in kinds and plan.outputs.spec != "all":
        raise ValueError(f'statistics: expected those of Fisher with outputs = "all", got {plan.outputs.spec!r}')
    logits = plan.logits() if "fisher" in kinds else None
    pending: dict[str, dict[str, _Pending]] = {}
    for batch in _batches(plan.kernels()):
        over_pairs = []
        for _, kernel in batch:
            with_backward = "backward" in kinds and kernel.factored
            over_pairs.append({"kernel": kernel} | ({"backward": kernel.backward_gram()} if with_backward else {}))
        for (name, kernel), of_layer in zip(batch, _pending(over_pairs, labels, products), strict=True):
            if "forward" in kinds and kernel.factored:
                (of_forward,) = _pending([{"forward": kernel.forward_gram()}], of_samples, products)
                of_layer |= of_forward
            if logits is not None:
                of_layer["fisher"] = _pending_fisher(fisher_kernel(kernel, logits), labels, products)
            if wanted & {"stable_rank", "label_correlation"}:
                of_layer["kernel"].largest = largest_eigenvalue(kernel)
            pending[name] = of_layer
    found = [{kind: one.finish() for kind, one in of_layer.items()} for of_layer in pending.values()]

    def column(kind: str, number: str) -> Tensor:
        numbers = [getattr(of_layer.get(kind, UNDEFINED), number) for of_layer in found]
        return torch.tensor(numbers, dtype=torch.float64)

    cka, spec = column("kernel", "cka"), plan.outputs.spec
    errors = [of_layer["kernel"].relative_error for of_layer in pending.values()]
    return AlignmentReport(
        layers=list(pending),
        cka=cka,
        centered_norm=column("kernel", "centered_norm"),
        trace=column("kernel", "trace"),
        n=x.shape[0],
        outputs=spec if isinstance(spec, (str, int)) else list(spec),
        precision=plan.precision,
        cka_error=None if products is None else cka * torch.tensor(errors, dtype=torch.float64),
        **{name: column(*_STATISTICS[name]) for name in _STATISTICS if name in wanted},
    )


@dataclass
class _Pending:
    """What is known of a kernel whose factors may be gone, with numbers still on the device: nothing waits for them."""

    measured: Measured
    labels: Labels
    numbers: Tensor  # [4], of `measure`
    largest: float = math.nan  # eigenvalue
    relative_error: float = 0.0  # standard error of the norm over the norm

    def finish(self) -> Alignment:
        return finish(self.measured, self.numbers.tolist(), self.labels, self.largest)


def _batches(kernels: Iterable[tuple[str, TangentKernel]]) -> Iterator[list[tuple[str, TangentKernel]]]:
    """Kernels to be measured by one op: on a CPU it takes small ones side by side, a thread each."""
    batch: list[tuple[str, TangentKernel]] = []
    held = 0
    for name, kernel in kernels:
        batch.append((name, kernel))
        held += sum(term.forward.nbytes + term.backward.nbytes for term in kernel.terms)
        if held >= _BATCH_BYTES or kernel.device.type != "cpu" or kernel.o == 1:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _pending(
    layers: Sequence[Mapping[str, TangentKernel]], labels: Labels, products: int | None
) -> list[dict[str, _Pending]]:
    """Of each layer's kernels; all are over the same rows."""
    if products is None:
        numbers = iter(measure([kernel for of_layer in layers for kernel in of_layer.values()], labels))
        return [
            {kind: _Pending(Measured.of(kernel), labels, next(numbers)) for kind, kernel in of_layer.items()}
            for of_layer in layers
        ]
    return [
        {kind: _pending_estimate(kernel, labels, products) for kind, kernel in of_layer.items()} for of_layer in layers
    ]


def _pending_estimate(kernel: TangentKernel, labels: Labels, products: int) -> _Pending:
    norm = estimate_frobenius_norm(kernel, products=products)
    numbers = estimated_numbers(kernel, labels, norm)
    return _Pending(Measured.of(kernel), labels, numbers, relative_error=norm.relative_error)


def _pending_fisher(fisher: TangentKernel, labels: Labels, products: int | None) -> _Pending:
    """Of the kernel of a layer's Fisher information, which is not centered."""
    if products is None:
        norm = fisher.frobenius_norm(centered=False)
    else:
        norm = estimate_frobenius_norm(fisher, centered=False, products=products).value
    # No sum of entries: that is for telling a constant kernel's centered norm from rounding.
    numbers = torch.tensor([float(inner_product(fisher, labels)), norm**2, fisher.trace(), 0.0], dtype=torch.float64)
    largest = largest_eigenvalue(fisher, centered=False)
    return _Pending(Measured.of(fisher, "Fisher information"), labels, numbers, largest)


def _require_statistics(statistics: Sequence[str]) -> set[str]:
    """Those asked for beside "cka", which is always there."""
    expected = f"statistics: expected a sequence of {', '.join(['cka', *_STATISTICS])}"
    if isinstance(statistics, str) or not isinstance(statistics, Sequence):
        raise TypeError(f"{expected}, got {statistics!r}")
    for name in statistics:
        if name != "cka" and name not in _STATISTICS:
            raise ValueError(f"{expected}, got {name!r}")
    return set(statistics) - {"cka"}
