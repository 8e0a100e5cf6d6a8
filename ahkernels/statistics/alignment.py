"""Alignment of every layer of a network with the labels, and what goes with it, from one capture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import torch
from torch import Tensor, nn

from ahkernels.capture import DEFAULT_MEMORY_BUDGET, Layers, plan_capture
from ahkernels.centering import Centering, Centerings, require_centerings
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


@overload
def layerwise_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    centering: Centering = "global",
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    statistics: Sequence[str] = ("cka",),
    products: int | None = None,
    progress: bool = False,
) -> AlignmentReport: ...


@overload
def layerwise_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    centering: Centerings,
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    statistics: Sequence[str] = ("cka",),
    products: int | None = None,
    progress: bool = False,
) -> dict[Centering, AlignmentReport]: ...


def layerwise_alignment(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    centering: Centering | Centerings = "global",
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    statistics: Sequence[str] = ("cka",),
    products: int | None = None,
    progress: bool = False,
) -> AlignmentReport | dict[Centering, AlignmentReport]:
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
        centering: Which mean kernels and labels lose. "global": one mean over all samples and outputs (equation 6).
            "per_output": each output over the samples, as in the figures of the paper. A sequence of them: a report for
            each, from one capture and one pass. For "trace", "sum" and one output both are the same.
        precision: "highest", "high", "medium"; None for torch.get_float32_matmul_precision().
        memory_budget: Bytes of factors held at once; a smaller one costs time.
        statistics: What to measure of each kernel; the alignment with ||C K C||_F and trace is always there.
            "cka": that alone. "forward_cka", "backward_cka": alignment of the forward and of the backward Gram on its
            own, nan for layers that have none, such as norms. "stable_rank", "label_correlation": what the alignment
            splits into (appendix G.1). "fisher_stable_rank", "fisher_label_correlation": the same of the layer's
            Fisher information under cross-entropy, not centered (appendix G.4, G.5; for `outputs` "all").
        products: None for exact norms, from all entries of each kernel. A number, to estimate them from so many
            products with it (see `estimate_frobenius_norm`), for when the exact pass takes too long; the report then
            has `cka_standard_error`.
        progress: Show a progress bar on stderr.

    Returns:
        The report, or for a sequence of centerings {centering: report}. An alignment that is not defined is nan, with a
        `DegenerateKernelWarning`.

    Raises:
        ValueError: TypeError or NotImplementedError for arguments that do not fit; the message names the argument.
    """
    centerings = require_centerings(centering)
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
    n = x.shape[0]
    labels = [Labels(plan.outputs, y, n, one) for one in centerings]  # raises before any work is done
    samples = OutputSelection("trace", plan.outputs.total)
    of_samples = [Labels(samples, y, n, one) for one in centerings] if "forward" in kinds else labels
    if "fisher" in kinds and plan.outputs.spec != "all":
        raise ValueError(f'statistics: expected those of Fisher with outputs = "all", got {plan.outputs.spec!r}')
    of_fisher = Labels(plan.outputs, y, n, None)
    logits = plan.logits() if "fisher" in kinds else None
    pending: dict[str, _OfLayer] = {}
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
                fisher = _pending_fisher(fisher_kernel(kernel, logits), of_fisher, products)
                of_layer["fisher"] = dict.fromkeys(centerings, fisher)
            if wanted & {"stable_rank", "label_correlation"}:
                for one in centerings:
                    of_layer["kernel"][one].largest = largest_eigenvalue(kernel, centering=one)
            pending[name] = of_layer
    reports = {one: _report(pending, one, wanted, plan.outputs, plan.precision, n, products) for one in centerings}
    return reports[centerings[0]] if isinstance(centering, str) else reports


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


_OfLayer: TypeAlias = dict[str, dict[Centering, _Pending]]  # by the kind of kernel


def _report(
    pending: Mapping[str, _OfLayer],
    centering: Centering,
    wanted: set[str],
    outputs: OutputSelection,
    precision: str,
    n: int,
    products: int | None,
) -> AlignmentReport:
    found = [{kind: of_kind[centering].finish() for kind, of_kind in layer.items()} for layer in pending.values()]

    def column(kind: str, number: str) -> Tensor:
        numbers = [getattr(of_layer.get(kind, UNDEFINED), number) for of_layer in found]
        return torch.tensor(numbers, dtype=torch.float64)

    cka, spec = column("kernel", "cka"), outputs.spec
    errors = [of_layer["kernel"][centering].relative_error for of_layer in pending.values()]
    return AlignmentReport(
        layers=list(pending),
        cka=cka,
        centered_norm=column("kernel", "centered_norm"),
        trace=column("kernel", "trace"),
        n=n,
        outputs=spec if isinstance(spec, (str, int)) else list(spec),
        centering=centering,
        precision=precision,
        cka_standard_error=None if products is None else cka * torch.tensor(errors, dtype=torch.float64),
        **{name: column(*_STATISTICS[name]) for name in _STATISTICS if name in wanted},
    )


def _batches(kernels: Iterable[tuple[str, TangentKernel]]) -> Iterator[list[tuple[str, TangentKernel]]]:
    """Kernels to be measured by one op: on a CPU it takes small ones side by side, a thread each."""
    batch: list[tuple[str, TangentKernel]] = []
    held = 0
    for name, kernel in kernels:
        batch.append((name, kernel))
        held += sum(term.forward.nbytes + term.backward.nbytes for term in kernel.factors)
        if held >= _BATCH_BYTES or kernel.device.type != "cpu" or kernel.o == 1:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _pending(
    layers: Sequence[Mapping[str, TangentKernel]], labels: Sequence[Labels], products: int | None
) -> list[_OfLayer]:
    """Of each layer's kernels, for each centering; all are over the same rows."""
    if products is not None:
        return [
            {kind: _pending_estimates(kernel, labels, products) for kind, kernel in of_layer.items()}
            for of_layer in layers
        ]
    numbers = measure([kernel for of_layer in layers for kernel in of_layer.values()], labels)
    index = itertools.count()
    found: list[_OfLayer] = []
    for of_layer in layers:
        found.append({})
        for kind, kernel in of_layer.items():
            row = next(index)
            found[-1][kind] = {
                one.centering: _Pending(Measured.of(kernel, one.centering), one, numbers[one.centering][row])
                for one in labels
            }
    return found


def _pending_estimates(kernel: TangentKernel, labels: Sequence[Labels], products: int) -> dict[Centering, _Pending]:
    found = {}
    for one in labels:
        norm = estimate_frobenius_norm(kernel, centering=one.centering, products=products)
        numbers = estimated_numbers(kernel, one, norm)
        measured = Measured.of(kernel, one.centering)
        found[one.centering] = _Pending(measured, one, numbers, relative_error=norm.relative_error)
    return found


def _pending_fisher(fisher: TangentKernel, labels: Labels, products: int | None) -> _Pending:
    """Of the kernel of a layer's Fisher information, which is not centered."""
    if products is None:
        norm = fisher.frobenius_norm(centering=None)
    else:
        norm = estimate_frobenius_norm(fisher, centering=None, products=products).value
    # No sum of entries: that is for telling a constant kernel's centered norm from rounding.
    numbers = torch.tensor([float(inner_product(fisher, labels)), norm**2, fisher.trace(), 0.0], dtype=torch.float64)
    largest = largest_eigenvalue(fisher, centering=None)
    return _Pending(Measured.of(fisher, None, "Fisher information"), labels, numbers, largest)


def _require_statistics(statistics: Sequence[str]) -> set[str]:
    """Those asked for beside "cka", which is always there."""
    expected = f"statistics: expected a sequence of {', '.join(['cka', *_STATISTICS])}"
    if isinstance(statistics, str) or not isinstance(statistics, Sequence):
        raise TypeError(f"{expected}, got {statistics!r}")
    for name in statistics:
        if name != "cka" and name not in _STATISTICS:
            raise ValueError(f"{expected}, got {name!r}")
    return set(statistics) - {"cka"}
