"""What a layerwise alignment measurement found: numbers per layer, and ways to read them."""

from __future__ import annotations

import difflib
import html
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ahkernels.centering import Centering, require_centering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def _short(number: float) -> str:
    """Four decimals, and small numbers in scientific notation instead of as zero."""
    return f"{number:.1e}" if 0 < abs(number) < 1e-3 else f"{number:.4f}"


# The numbers there may be for each layer, in the order of the table, and how they are shown.
_COLUMNS: dict[str, Callable[[float], str]] = {
    "cka": _short,
    "cka_standard_error": "{:.0e}".format,
    "forward_cka": _short,
    "backward_cka": _short,
    "stable_rank": "{:.2f}".format,
    "label_correlation": _short,
    "fisher_stable_rank": "{:.2f}".format,
    "fisher_label_correlation": _short,
    "centered_norm": "{:.3e}".format,
    "trace": "{:.3e}".format,
}

# Okabe-Ito colours: told apart with any colour vision.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"
_MOST_NAMES = 16  # more layers than this are labelled by number


@dataclass(frozen=True, eq=False, repr=False)
class AlignmentReport(Mapping[str, float]):
    """Alignment of every layer's tangent kernel with the labels.

    A read-only mapping from layer name to alignment, in forward order: ``report["fc3"]``, ``len(report)``,
    ``report.items()``. All tensors are fp64 on the CPU. A layer whose kernel is zero has an alignment of nan.

    Attributes:
        layers: names of the L layers (or groups of layers), in forward order.
        cka: [L], centered kernel alignment with the labels, in [0, 1].
        centered_norm: [L], Frobenius norm of the centered kernel, ||C K C||_F.
        trace: [L], trace of the kernel.
        n: number of samples.
        outputs: which outputs of the network were measured: "all", "trace", "sum", one index or several.
        precision: precision of the measurement: "highest", "high" or "medium".
        centering: which mean kernel and labels lost: "global" (equation 6) or "per_output" (the paper's figures).
        cka_standard_error: [L], standard error of the alignment where its norm was estimated; None where it is exact.
        forward_cka: [L], alignment of the forward Gram alone; None, as all that follow, if it was not asked for.
        backward_cka: [L], alignment of the backward Gram alone.
        stable_rank: [L], ||C K C||_F^2 / lambda_1^2.
        label_correlation: [L], sum_i lambda_i / lambda_1 <u_i, y~>^2.
        fisher_stable_rank: [L], stable rank of the layer's Fisher information.
        fisher_label_correlation: [L], label correlation of the layer's Fisher information.

    Raises:
        ValueError: if a name comes twice, a tensor does not hold one value per layer, or for another centering.
    """

    layers: list[str]
    cka: Tensor
    centered_norm: Tensor
    trace: Tensor
    n: int
    outputs: str | int | list[int]
    precision: str
    centering: Centering = "global"
    cka_standard_error: Tensor | None = None
    forward_cka: Tensor | None = None
    backward_cka: Tensor | None = None
    stable_rank: Tensor | None = None
    label_correlation: Tensor | None = None
    fisher_stable_rank: Tensor | None = None
    fisher_label_correlation: Tensor | None = None

    def __post_init__(self) -> None:
        require_centering(self.centering)
        object.__setattr__(self, "layers", list(self.layers))
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers: expected distinct names, got {self.layers}")
        for name in _COLUMNS:
            value = getattr(self, name)
            if value is None and name not in ("cka", "centered_norm", "trace"):
                continue
            value = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
            if value.shape != (len(self.layers),):
                expected = f"[{len(self.layers)}], one value per layer"
                raise ValueError(f"{name}: expected shape {expected}, got {list(value.shape)}")
            object.__setattr__(self, name, value)

    # ---- mapping: layer name -> alignment

    def __getitem__(self, layer: str) -> float:
        """Alignment of one layer; KeyError with the nearest names for an unknown one."""
        if layer not in self.layers:
            near = difflib.get_close_matches(str(layer), self.layers) or self.layers[:3]
            raise KeyError(
                f"layer: expected one of the {len(self)} in this report (nearest: {', '.join(near)}), got {layer!r}"
            )
        return float(self.cka[self.layers.index(layer)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def peak(self) -> str | None:
        """Name of the layer of greatest alignment (the first of equals); None if every one is nan."""
        known = {layer: value for layer, value in self.items() if not math.isnan(value)}
        return max(known, key=known.__getitem__, default=None)

    # ---- text

    def __str__(self) -> str:
        """The report as an aligned table; an asterisk marks the peak."""
        peak = self.peak
        table = {" ": ["*" if layer == peak else "" for layer in self.layers], **self._cells()}
        columns = []
        for heading, cells in table.items():
            width = max(map(len, [heading, *cells]))
            left = heading in (" ", "layer")
            columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in [heading, *cells]])
        lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
        rule = "-" * max(map(len, lines))
        return "\n".join([self._title(), lines[0], rule, *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table for notebooks; the peak's row is bold."""

        def row(cells: list[str], tag: str, weight: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f'<tr style="font-weight: {weight}">{inner}</tr>'

        table, peak = self._cells(), self.peak
        rows = [row(list(table), "th", "bold")]
        for layer, *cells in zip(*table.values(), strict=True):
            rows.append(row([layer, *cells], "td", "bold" if layer == peak else "normal"))
        return f"<table><caption>{html.escape(self._title())}</caption>{''.join(rows)}</table>"

    def _title(self) -> str:
        return (
            f"Tangent-kernel alignment, n = {self.n}, outputs = {self.outputs}, centering = {self.centering}, "
            f"precision = {self.precision}"
        )

    def _cells(self) -> dict[str, list[str]]:
        """Heading -> formatted cells, one per layer."""
        cells = {"layer": self.layers}
        for name, values in self.columns().items():
            cells[name.removesuffix("_cka").replace("_", " ")] = [_COLUMNS[name](value) for value in values.tolist()]
        return cells

    def columns(self) -> dict[str, Tensor]:
        """Field name -> [L], for every number that was measured of each layer."""
        return {name: value for name in _COLUMNS if (value := getattr(self, name)) is not None}

    def row(self) -> dict[str, float]:
        """The alignments and what was asked for beside them as one flat row, {"cka/fc1": value, ...}.

        Left out are `centered_norm` and `trace`, which nobody asks for by name.
        """
        return {
            f"{name}/{layer}": value
            for name, values in self.columns().items()
            if name not in ("centered_norm", "trace")
            for layer, value in zip(self.layers, values.tolist(), strict=True)
        }

    # ---- conversion

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python, ready for JSON.

        JSON knows neither nan nor inf: a value that is not finite becomes None.
        """

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                return [v if math.isfinite(v) else None for v in value.tolist()]
            return list(value) if isinstance(value, (list, tuple)) else value

        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    def to_dataframe(self) -> DataFrame:
        """One row per layer (the index), one column per kind of number; ImportError without pandas."""
        pandas = optional_import("pandas", "to_dataframe()", "pip install pandas")
        index = pandas.Index(self.layers, name="layer")
        frame: DataFrame = pandas.DataFrame({k: v.numpy() for k, v in self.columns().items()}, index=index)
        return frame

    def plot(self, ax: Axes | None = None) -> Axes:
        """Alignment by layer; forward and backward alignment, where known, as dashed and dotted lines.

        Args:
            ax: the matplotlib axes to draw on; a new figure's by default.

        Returns:
            The axes drawn on.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        if ax is None:
            ax = import_pyplot().subplots(layout="constrained")[1]
        lines = [("tangent kernel", self.cka, _BLUE, "o-")]
        if self.forward_cka is not None:
            lines.append(("forward Gram", self.forward_cka, _ORANGE, "s--"))
        if self.backward_cka is not None:
            lines.append(("backward Gram", self.backward_cka, _GREEN, "^:"))
        index = list(range(1, len(self) + 1))
        for name, values, colour, style in lines:
            ax.plot(index, values.tolist(), style, color=colour, label=name, markersize=5)
        if len(lines) > 1:
            ax.legend()
        if len(self) <= _MOST_NAMES:
            ax.set_xticks(index, self.layers)
            if sum(map(len, self.layers)) > 40:  # too long to stand side by side
                for label in ax.get_xticklabels():
                    label.set(rotation=40, ha="right", rotation_mode="anchor")
            ax.set_xlabel("layer")
        else:
            ax.set_xlabel("layer index (input to output)")
        ax.set_ylabel(axis_label(self.centering))
        ax.update_datalim([(1, 0)])  # the axis starts at zero, and still grows with what is drawn later
        ax.autoscale_view()
        return ax


def axis_label(centering: Centering) -> str:
    """What an axis of alignments shows."""
    return "alignment with the labels (CKA)" + (", per output" if centering == "per_output" else "")


def optional_import(module: str, what: str, install: str) -> ModuleType:
    """Import an optional dependency; the ImportError without it says what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module.partition('.')[0]}: {install}") from error


def import_pyplot() -> ModuleType:
    """matplotlib.pyplot, imported when a plot is asked for and not before."""
    return optional_import("matplotlib.pyplot", "plot()", 'pip install "ahkernels[plot]"')
