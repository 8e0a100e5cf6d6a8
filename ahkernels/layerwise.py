"""Alignment of every layer of a network with the labels, and what goes with it, from one capture."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias, overload

import torch
from torch import Tensor, nn

from ahkernels.capture import CaptureOptions, Inputs, start_capture
from ahkernels.capture.explain import explain_together
from ahkernels.centering import Centering, Centerings, require_centerings
from ahkernels.distributed.cost import Shard
from ahkernels.distributed.group import everywhere, watched
from ahkernels.distributed.layers import reports_by_layers
from ahkernels.inner_products import inner_products
from ahkernels.kernel import TangentKernel
from ahkernels.ops.moments import KernelMoments
from ahkernels.outputs import OutputSelection
from ahkernels.readings import Readings
from ahkernels.report import AlignmentReport
from ahkernels.statistics.alignment_numbers import AlignmentNumbers, inner_product, label_moments
from ahkernels.statistics.debiased import bias_of_inner_products, require_debiased
from ahkernels.statistics.degenerate import RoundingBound
from ahkernels.statistics.degenerate_warning import Finding, OneWarning
from ahkernels.statistics.estimate import Estimate, estimate_frobenius_norm, estimated_moments, require_products
from ahkernels.statistics.fisher import fisher_roots
from ahkernels.statistics.labels import Labels
from ahkernels.statistics.layer_statistics import STATISTICS, KernelKind, statistics_in_report
from ahkernels.statistics.spectrum import largest_eigenvalue

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ahkernels.capture import Capture, CapturedKernel, CaptureKeywords, ShardedCapture

# How large the factors of layers are that are measured by one op, as a part of the memory budget at most.
_BATCH_BYTES = 32 << 20
_BATCHES_IN_BUDGET = 16


@overload
def layerwise_alignment(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    centering: Centering = "global",
    statistics: Sequence[str] = (),
    products: int | None = None,
    tolerance: float | None = None,
    **options: Unpack[CaptureKeywords],
) -> AlignmentReport: ...


@overload
def layerwise_alignment(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    centering: Centerings,
    statistics: Sequence[str] = (),
    products: int | None = None,
    tolerance: float | None = None,
    **options: Unpack[CaptureKeywords],
) -> dict[Centering, AlignmentReport]: ...


def layerwise_alignment(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    centering: Centering | Centerings = "global",
    statistics: Sequence[str] = (),
    products: int | None = None,
    tolerance: float | None = None,
    **options: Unpack[CaptureKeywords],
) -> AlignmentReport | dict[Centering, AlignmentReport]:
    """Alignment A_l of each layer's tangent kernel with the labels (equation 7), and further statistics on request.

    No kernel is held in memory, and a Jacobian is formed only where that costs less or a layer has no rule (see
    `explain`). The network is captured once for all statistics. The model is left as it was, also after an error.

    Args:
        model: A network with outputs f(x) [n, o], in which samples do not depend on one another.
        x: What the model takes for n samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...].
        y: Class indices [n] or a target matrix [n, o].
        centering: The mean that is removed from kernels and labels. "global": one over all samples and outputs, as in
            equation 6. "per_output": each output over the samples, as in the figures of the paper. A sequence of them
            gives a report for each, from one capture and one pass. For "trace", "sum" and one output both are the same.
        statistics: What to measure of each layer beside alignment, ||C K C||_F and trace, which are always there: names
            in `ahkernels.STATISTICS`, which says what each means. Those of the Fisher information are for `outputs`
            "all". "debiased_cka" is for kernels over samples alone (`outputs` "trace", "sum" or one output) or
            `centering` "per_output", and for exact norms: see `cka`.
        products: A number estimates norms from so many products with each kernel (see `estimate_frobenius_norm`), where
            the exact pass would take too long; the report then has `cka_standard_error`. Without it and a tolerance
            norms are exact, from all entries of each kernel.
        tolerance: Relative standard error that the estimates have to reach, with at most `products` or 1000 products.
        **options: `layers`, `outputs`, `output`, `precision`, `memory_budget`, `certify`, `progress` and
            `process_group`; see `CaptureOptions`.

    Returns:
        The report, or for a sequence of centerings a dict of reports by centering. An alignment that is not defined is
        nan, and a `DegenerateKernelWarning` names all layers that have none.

    Raises:
        ValueError: For arguments that do not fit; the message names the argument.
        TypeError: For arguments of another type.
        NonFiniteError: If there is nan or inf in a layer's activations or gradients.
        RuntimeError: If a parameter changes while the model is measured.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> report = ah.layerwise_alignment(model, x, y, statistics=["stable_rank"])
        >>> list(report.statistics)
        ['cka', 'stable_rank', 'centered_norm', 'trace']
        >>> reports = ah.layerwise_alignment(model, x, y, centering=("global", "per_output"))
        >>> reports["per_output"].centering
        'per_output'
    """
    chosen = AlignmentOptions.of(centering, statistics, products, tolerance, options)
    reports = alignment_reports(model, x, y, chosen, OneWarning())
    return next(iter(reports.values())) if isinstance(centering, str) else reports


class _NormEstimate(Protocol):
    """See `estimate_frobenius_norm`."""

    def __call__(self, kernel: TangentKernel, *, centering: Centering | None) -> Estimate: ...


@dataclass(frozen=True)
class AlignmentOptions:
    """What to measure of each layer, and how.

    Attributes:
        centerings: The means that are removed, each for a report of its own.
        statistics: What to measure beside the alignment.
        products: The number of products to estimate norms from, or the most of them; None for a usual one.
        tolerance: The relative standard error of estimates; None for one that is not given. Without both norms are
            exact.
        capture: What all measurements of a model share.

    Raises:
        ValueError: For unknown `statistics`, another number of `products` or another `tolerance`.
        TypeError: For another type.
    """

    centerings: tuple[Centering, ...]
    statistics: Sequence[str]
    products: int | None
    tolerance: float | None
    capture: CaptureOptions

    def __post_init__(self) -> None:
        require_products(self.products, self.tolerance)
        statistics_in_report(self.statistics, estimated=self.estimate is not None)

    @classmethod
    def of(
        cls,
        centering: Centering | Centerings,
        statistics: Sequence[str],
        products: int | None,
        tolerance: float | None,
        options: CaptureKeywords,
    ) -> AlignmentOptions:
        """The options that a user gives; with a process group, an error on one rank is one on all of them."""

        def checked() -> AlignmentOptions:
            captured = CaptureOptions.of(options)
            return cls(require_centerings(centering), statistics, products, tolerance, captured)

        return everywhere(options.get("process_group"), checked)

    @property
    def arguments(self) -> dict[str, object]:
        """What all processes must choose alike, beside the options of the capture."""
        return {
            "call": "layerwise_alignment",
            "centering": self.centerings,
            "statistics": list(self.statistics),
            "products": self.products,
            "tolerance": self.tolerance,
        }

    @property
    def estimate(self) -> _NormEstimate | None:
        """What estimates a norm, from a kernel and its centering; None where norms are exact."""
        if self.products is None and self.tolerance is None:
            return None
        return functools.partial(estimate_frobenius_norm, products=self.products, tolerance=self.tolerance)


def alignment_reports(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    options: AlignmentOptions,
    one_warning: OneWarning,
    *,
    evaluating: bool = False,
) -> dict[Centering, AlignmentReport]:
    """Measures the alignment of each layer, a report for each centering; see `layerwise_alignment`.

    Args:
        model: The network.
        x: What the model takes for n samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...].
        y: Class indices [n] or a target matrix [n, o].
        options: What to measure, and how.
        one_warning: Warns of the layers that have no alignment.
        evaluating: Whether to measure the network in eval mode, whatever mode it is in.
    """
    with watched(options.capture.process_group):
        options = _with_shard(model, x, options, evaluating=evaluating)
        if options.capture.process_group is not None and options.capture.shard == "layers":

            def alone(
                model: nn.Module, x: Inputs, y: Tensor, own: AlignmentOptions
            ) -> dict[Centering, AlignmentReport]:
                return _alignment_reports(model, x, y, own, one_warning, evaluating=evaluating)

            return reports_by_layers(model, x, y, options, alone, evaluating=evaluating)
        return _alignment_reports(model, x, y, options, one_warning, evaluating=evaluating)


def _with_shard(model: nn.Module, x: Inputs, options: AlignmentOptions, *, evaluating: bool) -> AlignmentOptions:
    """The options with what the ranks share out, where that is to be chosen."""
    capture = options.capture
    if capture.shard != "auto":
        return options
    shard: Shard = "samples"
    if capture.process_group is not None and options.estimate is None:
        found = explain_together(model, x, capture, options.centerings, options.arguments, evaluating=evaluating)
        shard = found.shard or shard
    return replace(options, capture=replace(capture, shard=shard))


def _alignment_reports(
    model: nn.Module, x: Inputs, y: Tensor, options: AlignmentOptions, one_warning: OneWarning, *, evaluating: bool
) -> dict[Centering, AlignmentReport]:
    centerings, estimate = options.centerings, options.estimate
    names = statistics_in_report(options.statistics, estimated=estimate is not None)
    wanted = [STATISTICS[name] for name in names]
    kinds = {statistic.kernel for statistic in wanted}
    grams = bool(kinds & {"forward", "backward"})
    capture = start_capture(model, x, options.capture, grams=grams, evaluating=evaluating, arguments=options.arguments)
    samples, outputs = capture.samples, capture.outputs

    def labels_of(rows: OutputSelection, centering: Centering | None) -> Labels:
        return Labels(rows, y, samples, centering).to(capture.device)

    labels = [labels_of(outputs, one) for one in centerings]  # raises before any work is done
    traced = OutputSelection("trace", outputs.total)
    of_samples = [labels_of(traced, one) for one in centerings] if "forward" in kinds else labels
    if "fisher" in kinds and outputs.spec != "all":
        raise ValueError(f'statistics: expected those of Fisher with outputs = "all", got {outputs.spec!r}')
    of_fisher = (fisher_roots(capture.logits()), labels_of(outputs, None)) if "fisher" in kinds else None
    spectral = any(statistic.spectral for statistic in wanted if statistic.kernel == "kernel")
    debiased = any(statistic.debiased for statistic in wanted)
    if debiased:
        require_debiased("statistics", samples.n, 1 if outputs.per_sample else len(outputs.indices), centerings)
    readings = Readings()
    pending: dict[str, _PendingLayer] = {}
    most_bytes = min(_BATCH_BYTES, options.capture.memory_budget // _BATCHES_IN_BUDGET)
    if "per_output" in centerings and capture.device.type != "cpu":
        most_bytes = 0  # there, the offsets of each kernel would be held, and nothing gained
    for batch in _batches(capture.kernels(), most_bytes):
        same_rows: list[dict[KernelKind, TangentKernel]] = []
        for _, kernel, with_grams in batch:
            same_rows.append({"kernel": kernel})
            if "backward" in kinds and with_grams is kernel:  # of the same factors
                same_rows[-1]["backward"] = with_grams.backward_gram()
        of_batch = _pending(same_rows, labels, estimate, readings)
        for (name, kernel, with_grams), of_layer in zip(batch, of_batch, strict=True):
            if "forward" in kinds and with_grams is not None:
                of_layer |= _pending([{"forward": with_grams.forward_gram()}], of_samples, estimate, readings)[0]
            if "backward" in kinds and with_grams is not None and with_grams is not kernel:
                of_layer |= _pending([{"backward": with_grams.backward_gram()}], labels, estimate, readings)[0]
            if of_fisher is not None:
                roots, uncentered = of_fisher
                fisher = _pending_fisher(kernel.congruence(roots), uncentered, estimate, readings)
                of_layer["fisher"] = dict.fromkeys(centerings, fisher)
            for one in centerings if spectral else ():
                of_layer["kernel"][one].largest = largest_eigenvalue(kernel, centering=one)
            if debiased:
                bias = readings.add(bias_of_inner_products([kernel], labels[0].centered))
                for one in centerings:  # with several, they are the same
                    of_layer["kernel"][one].bias = bias
            pending[name] = of_layer
        del batch, same_rows, kernel, with_grams  # before the next pass
    measured = {one: [_numbers(of_layer, one) for of_layer in pending.values()] for one in centerings}
    all_numbers = [numbers for layers in measured.values() for layer in layers for numbers in layer.values()]
    findings = (finding for numbers in all_numbers for finding in numbers.findings)
    one_warning.warn([*map(Finding.unreached, capture.unreached), *findings])
    return {one: _report(list(pending), measured[one], one, names, capture) for one in centerings}


@dataclass
class _PendingKernel:
    """A kernel whose factors may be gone and whose moments may still be on the device: nothing waits for them yet."""

    bound: RoundingBound
    moments: Callable[[], KernelMoments]
    labels: Labels
    largest: float = math.nan
    relative_error: float = 0.0
    bias: Callable[[], Tensor] | None = None

    def numbers(self) -> AlignmentNumbers:
        """The numbers as floats, which waits for the device."""
        bias = None if self.bias is None else self.bias()
        return AlignmentNumbers.of(self.bound, self.moments(), self.labels, self.largest, self.relative_error, bias)


_PendingLayer: TypeAlias = dict[KernelKind, dict[Centering, _PendingKernel]]


def _numbers(layer: _PendingLayer, centering: Centering) -> dict[KernelKind, AlignmentNumbers]:
    return {kind: of_kind[centering].numbers() for kind, of_kind in layer.items()}


def _report(
    layers: list[str],
    measured: Sequence[Mapping[KernelKind, AlignmentNumbers]],
    centering: Centering,
    names: Sequence[str],
    capture: Capture | ShardedCapture,
) -> AlignmentReport:
    unmeasured = AlignmentNumbers()
    statistics = {}
    for name in names:
        statistic = STATISTICS[name]
        column = [statistic.formula(of_layer.get(statistic.kernel, unmeasured)) for of_layer in measured]
        statistics[name] = torch.tensor(column, dtype=torch.float64)
    return AlignmentReport(
        layers=layers,
        statistics=statistics,
        n=capture.samples.n,
        outputs=capture.outputs.plain_spec,
        centering=centering,
        precision=capture.precision,
        certificate=capture.certificate,
        kinds=capture.kinds,
    )


def _batches(kernels: Iterable[CapturedKernel], most_bytes: int) -> Iterator[list[CapturedKernel]]:
    """Kernels to be measured by one op: a CPU takes small ones side by side, a device launches less for each of them.

    A batch ends once its factors are of so many bytes.
    """
    batch: list[CapturedKernel] = []
    held = 0
    for captured in kernels:
        kernel = captured.kernel
        if batch and kernel.factors[0].forward.dtype != batch[0].kernel.factors[0].forward.dtype:
            yield batch
            batch, held = [], 0
        batch.append(captured)
        held += sum(factors.forward.nbytes + factors.backward.nbytes for factors in kernel.factors)
        full = held >= most_bytes or kernel.o == 1 or kernel.samples.sharded
        del captured, kernel  # before the next pass
        if full:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _pending(
    layers: Sequence[Mapping[KernelKind, TangentKernel]],
    labels: Sequence[Labels],
    estimate: _NormEstimate | None,
    readings: Readings,
) -> list[_PendingLayer]:
    """The kernels of each layer, all over the same rows, measured for each centering."""
    if estimate is not None:
        return [
            {kind: _pending_estimates(kernel, labels, estimate) for kind, kernel in of_layer.items()}
            for of_layer in layers
        ]
    moments = label_moments([kernel for of_layer in layers for kernel in of_layer.values()], labels)
    of_each = {one: readings.add(found.stacked()) for one, found in moments.items()}
    row = itertools.count()

    def of_kernel(kernel: TangentKernel, index: int) -> dict[Centering, _PendingKernel]:
        def pending(one: Labels) -> _PendingKernel:
            bound = RoundingBound.of(kernel, one.centering)
            return _PendingKernel(bound, lambda: KernelMoments(*of_each[one.centering]()[index].tolist()), one)

        return {one.centering: pending(one) for one in labels}

    return [{kind: of_kernel(kernel, next(row)) for kind, kernel in of_layer.items()} for of_layer in layers]


def _pending_estimates(
    kernel: TangentKernel, labels: Sequence[Labels], estimate: _NormEstimate
) -> dict[Centering, _PendingKernel]:
    found = {}
    for one in labels:
        norm = estimate(kernel, centering=one.centering)
        moments = estimated_moments(kernel, one, norm)  # now, since the kernel would be held until then
        bound = RoundingBound.of(kernel, one.centering)
        found[one.centering] = _PendingKernel(
            bound, functools.partial(_given, moments), one, relative_error=norm.relative_error
        )
    return found


def _given(moments: KernelMoments) -> KernelMoments:
    return moments


def _pending_fisher(
    fisher: TangentKernel, labels: Labels, estimate: _NormEstimate | None, readings: Readings
) -> _PendingKernel:
    """The kernel of a layer's Fisher information, which is not centered."""
    product, trace = inner_product(fisher, labels), fisher.samples.sum(fisher.diagonal().sum())
    if estimate is None:
        square = inner_products([fisher], None).squeeze()
    else:
        square = torch.full_like(trace, estimate(fisher, centering=None).value ** 2)
    # There is no constant part: nothing is centered.
    numbers = readings.add(torch.stack((product, square, trace, torch.zeros_like(trace))))
    bound = RoundingBound.of(fisher, None, "Fisher information")
    largest = largest_eigenvalue(fisher, centering=None)
    return _PendingKernel(bound, lambda: KernelMoments(*numbers().tolist()), labels, largest)
