"""The statistics that a report can have of each layer: one table, which is where a new one is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ahkernels.statistics.alignment_numbers import AlignmentNumbers

KernelKind: TypeAlias = Literal["kernel", "forward", "backward", "fisher"]


@dataclass(frozen=True)
class LayerStatistic:
    """A number of each layer in a report.

    Attributes:
        meaning: What it is, in a few words.
        kernel: Which kernel of the layer it is taken of: the tangent kernel itself, its forward or backward Gram, or
            the kernel of its Fisher information.
        formula: The number from those that were measured of this kernel.
        shown: The number as text in a table.
        spectral: Whether the formula needs the largest eigenvalue.
        debiased: Whether the formula needs the bias of few samples, which is there for exact norms alone.
    """

    meaning: str
    kernel: KernelKind
    formula: Callable[[AlignmentNumbers], float]
    shown: Callable[[float], str]
    spectral: bool = False
    debiased: bool = False


def _short(number: float) -> str:
    """Four decimals, and small numbers in scientific notation instead of as zero."""
    return f"{number:.1e}" if 0 < abs(number) < 1e-3 else f"{number:.4f}"


_TWO_DECIMALS, _SCIENTIFIC = "{:.2f}".format, "{:.3e}".format

# In the order of a report's table.
STATISTICS: dict[str, LayerStatistic] = {
    "cka": LayerStatistic(
        "alignment of the tangent kernel with the labels, in [0, 1] (equation 7)",
        "kernel",
        lambda numbers: numbers.cka,
        _short,
    ),
    "cka_standard_error": LayerStatistic(
        "standard error of the alignment, where its norm is estimated from products",
        "kernel",
        lambda numbers: numbers.cka_standard_error,
        "{:.0e}".format,
    ),
    "debiased_cka": LayerStatistic(
        "alignment without the bias of few samples, in [-1, 1], around 0 for labels that carry no information",
        "kernel",
        lambda numbers: numbers.debiased_cka,
        _short,
        debiased=True,
    ),
    "forward_cka": LayerStatistic(
        "alignment of the forward Gram alone; nan for layers that have none, such as norms",
        "forward",
        lambda numbers: numbers.cka,
        _short,
    ),
    "backward_cka": LayerStatistic(
        "alignment of the backward Gram alone; nan for layers that have none",
        "backward",
        lambda numbers: numbers.cka,
        _short,
    ),
    "stable_rank": LayerStatistic(
        "||C K C||_F^2 / lambda_1^2 (appendix G.1)",
        "kernel",
        lambda numbers: numbers.stable_rank,
        _TWO_DECIMALS,
        spectral=True,
    ),
    "label_correlation": LayerStatistic(
        "sum_i lambda_i / lambda_1 <u_i, y~>^2, the alignment times the root of the stable rank (appendix G.1)",
        "kernel",
        lambda numbers: numbers.label_correlation,
        _short,
        spectral=True,
    ),
    "fisher_stable_rank": LayerStatistic(
        "stable rank of the layer's Fisher information under cross-entropy, not centered (appendix G.5)",
        "fisher",
        lambda numbers: numbers.stable_rank,
        _TWO_DECIMALS,
        spectral=True,
    ),
    "fisher_label_correlation": LayerStatistic(
        "label correlation of the layer's Fisher information, not centered (appendix G.5)",
        "fisher",
        lambda numbers: numbers.label_correlation,
        _short,
        spectral=True,
    ),
    "centered_norm": LayerStatistic(
        "Frobenius norm of the centered tangent kernel, ||C K C||_F",
        "kernel",
        lambda numbers: numbers.norm,
        _SCIENTIFIC,
    ),
    "trace": LayerStatistic(
        "trace of the tangent kernel, the sum of its eigenvalues", "kernel", lambda numbers: numbers.trace, _SCIENTIFIC
    ),
}

ALWAYS = ("cka", "centered_norm", "trace")  # in every report
_ESTIMATED = "cka_standard_error"  # in every report from estimated norms, and in no other


def statistics_in_report(asked: Sequence[str], *, estimated: bool) -> list[str]:
    """Names of the statistics that a report has, in the order of its table.

    Args:
        asked: Those that the user asked for.
        estimated: Whether norms are estimated from products.

    Raises:
        TypeError: If `asked` is no sequence of names; the message names `statistics`.
        ValueError: For a name that is not in `STATISTICS`, or one that estimated norms do not give.
    """
    may_ask = [name for name in STATISTICS if name != _ESTIMATED]
    expected = f"statistics: expected a sequence of {', '.join(may_ask)}"
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise TypeError(f"{expected}, got {asked!r}")
    for name in asked:
        if name not in may_ask:
            raise ValueError(f"{expected}, got {name!r}")
        if estimated and STATISTICS[name].debiased:
            raise ValueError(
                f"statistics: expected exact norms for {name!r}, got products or a tolerance to estimate them"
            )
    wanted = {*ALWAYS, *asked, *([_ESTIMATED] if estimated else [])}
    return [name for name in STATISTICS if name in wanted]
