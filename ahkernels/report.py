"""What a layerwise alignment measurement found: numbers per layer, and ways to read them."""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ahkernels.centering import Centering, require_centering
from ahkernels.certificate import Certificate
from ahkernels.files.numbers import from_json_number, to_json_number
from ahkernels.files.parsing import parsed
from ahkernels.files.results import read_result, write_result
from ahkernels.optional_import import optional_import
from ahkernels.plotting import plot_report
from ahkernels.statistics.layer_statistics import ALWAYS, STATISTICS
from ahkernels.table import Column, html_table, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from xarray import Dataset

    from ahkernels.plotting.null_level import NullLevel


@dataclass(frozen=True, eq=False, repr=False)
class AlignmentReport(Mapping[str, float]):
    """Alignment of every layer's tangent kernel with the labels.

    It is a read-only mapping from the names of layers to their alignments, in forward order: `report["fc3"]`,
    `len(report)`, `report.items()`. All tensors are float64 on the CPU. A layer whose kernel is zero or constant has an
    alignment of nan.

    Every statistic is an attribute too, such as `report.cka` and `report.stable_rank`; the attribute of one that was
    not asked for is None. `ahkernels.STATISTICS` says what each means.

    Attributes:
        layers: Names of the L layers (or groups of layers), in forward order.
        statistics: {name: [L]} for every number that was measured of each layer: "cka", "centered_norm" and "trace"
            always, and what else was asked for.
        n: Number of samples.
        outputs: Which outputs of the network were measured: "all", "trace", "sum", one index or several.
        precision: Precision of the measurement: "highest", "high" or "medium".
        centering: Which mean kernel and labels lost: "global" (equation 6) or "per_output" (the paper's figures).
        certificate: How well what was captured of each layer agreed with autograd, and how many calls ago that was
            looked at; None where it never was.
        kinds: The type of each layer's module, such as "Linear"; "" for a group of several types, and where the type
            is not known, which is what no kinds at all stand for.

    Raises:
        ValueError: If a layer's name comes twice, a statistic is unknown or missing, a tensor or `kinds` does not hold
            one value for each layer, or for another centering.
        TypeError: If `certificate` has another type.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> report = ah.layerwise_alignment(model, torch.randn(20, 4), torch.arange(20) % 3)
        >>> list(report), report["2"] == float(report.cka[1]), report.peak in report
        (['0', '2'], True, True)
        >>> report.kinds
        ['Linear', 'Linear']
    """

    layers: list[str]
    statistics: dict[str, Tensor]
    n: int
    outputs: str | int | list[int]
    precision: str
    centering: Centering = "global"
    certificate: Certificate | None = None
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_centering(self.centering)
        if not isinstance(self.certificate, (Certificate, type(None))):
            raise TypeError(f"certificate: expected a Certificate or None, got {self.certificate!r}")
        if self.n < 1:
            raise ValueError(f"n: expected at least one sample, got {self.n}")
        object.__setattr__(self, "layers", list(self.layers))
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers: expected distinct names, got {self.layers}")
        object.__setattr__(self, "kinds", list(self.kinds) or [""] * len(self.layers))
        if len(self.kinds) != len(self.layers):
            raise ValueError(f"kinds: expected one for each of the {len(self.layers)} layers, got {self.kinds}")
        wrong = [*(set(ALWAYS) - set(self.statistics)), *(set(self.statistics) - set(STATISTICS))]
        if wrong:
            expected = f"{', '.join(ALWAYS)} and others of {', '.join(STATISTICS)}"
            raise ValueError(f"statistics: expected {expected}, got {', '.join(self.statistics)}")
        found = {}
        for name in STATISTICS:
            if name not in self.statistics:
                continue
            value = torch.as_tensor(self.statistics[name], dtype=torch.float64, device="cpu").detach()
            if value.shape != (len(self.layers),):
                expected = f"[{len(self.layers)}], one value per layer"
                raise ValueError(f"{name}: expected shape {expected}, got {list(value.shape)}")
            found[name] = value
        object.__setattr__(self, "statistics", found)

    # ---- statistics by name

    @property
    def cka(self) -> Tensor:
        """[L], centered kernel alignment with the labels, in [0, 1]; nan where a kernel is zero or constant."""
        return self.statistics["cka"]

    @property
    def centered_norm(self) -> Tensor:
        """[L], Frobenius norm of the centered kernel, ||C K C||_F."""
        return self.statistics["centered_norm"]

    @property
    def trace(self) -> Tensor:
        """[L], trace of the kernel."""
        return self.statistics["trace"]

    def __getattr__(self, name: str) -> Tensor | None:
        """[L] for a statistic that was measured, None for one that was not asked for."""
        if name in STATISTICS:
            return self.statistics.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.statistics]

    # ---- mapping: layer name -> alignment

    def __getitem__(self, layer: str) -> float:
        """Alignment of one layer.

        Raises:
            KeyError: For an unknown layer; the message has the nearest names.
        """
        if layer not in self.layers:
            near = difflib.get_close_matches(str(layer), self.layers) or self.layers[:3]
            names = ", ".join(map(repr, near))
            raise KeyError(f"layer: expected one of the {len(self)} in this report (nearest: {names}), got {layer!r}")
        return float(self.cka[self.layers.index(layer)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def peak(self) -> str | None:
        """Name of the layer with the greatest alignment, the first of equals; None if every alignment is nan."""
        known = {layer: value for layer, value in self.items() if not math.isnan(value)}
        return max(known, key=known.__getitem__, default=None)

    # ---- text

    def __str__(self) -> str:
        """The report as a table; an asterisk marks the peak."""
        peak = self.peak
        layer, *numbers = self._cells().items()
        columns = [
            Column(" ", ["*" if name == peak else "" for name in self.layers], "left"),
            Column(*layer, "left"),
            *(Column(*number) for number in numbers),
        ]
        return f"{self._title()}\n{text_table(columns, rule=True)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table for notebooks; the peak's row is bold."""
        columns = [Column(heading, cells) for heading, cells in self._cells().items()]
        return html_table(columns, self._title(), bold=None if self.peak is None else self.layers.index(self.peak))

    def _title(self) -> str:
        return (
            f"Tangent-kernel alignment, n = {self.n}, outputs = {self.outputs}, centering = {self.centering}, "
            f"precision = {self.precision}"
        )

    def _cells(self) -> dict[str, list[str]]:
        """Heading -> formatted cells, one per layer."""
        cells = {"layer": self.layers}
        for name, values in self.statistics.items():
            heading = name.removesuffix("_cka").replace("_", " ")
            cells[heading] = [STATISTICS[name].shown(value) for value in values.tolist()]
        return cells

    def row(self) -> dict[str, float]:
        """The alignments and what was asked for beside them as one flat row, {"cka/fc1": value, ...}.

        Left out are `centered_norm` and `trace`, which nobody asks for by name.
        """
        return {
            f"{name}/{layer}": value
            for name, values in self.statistics.items()
            if name not in ("centered_norm", "trace")
            for layer, value in zip(self.layers, values.tolist(), strict=True)
        }

    # ---- conversion

    def to_dict(self) -> dict[str, Any]:
        """What was measured and how as plain Python, ready for JSON.

        As JSON knows neither nan nor inf, nan becomes None, and inf the string "inf".
        """
        return {
            "layers": list(self.layers),
            "kinds": list(self.kinds),
            "n": self.n,
            "outputs": list(self.outputs) if isinstance(self.outputs, (list, tuple)) else self.outputs,
            "precision": self.precision,
            "centering": self.centering,
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "statistics": {name: list(map(to_json_number, one.tolist())) for name, one in self.statistics.items()},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> AlignmentReport:
        """The report that `to_dict` gave.

        Raises:
            ValueError: For anything else.
        """
        return parsed(lambda: cls._of(state), "state: expected what to_dict() of a report gives")

    @classmethod
    def _of(cls, state: Mapping[str, Any]) -> AlignmentReport:
        return cls(
            layers=list(map(str, state["layers"])),
            kinds=list(map(str, state["kinds"])),
            statistics={
                name: torch.tensor(list(map(from_json_number, values)), dtype=torch.float64)
                for name, values in state["statistics"].items()
            },
            n=operator.index(state["n"]),
            outputs=state["outputs"],
            precision=state["precision"],
            centering=state["centering"],
            certificate=None if state["certificate"] is None else Certificate.from_dict(state["certificate"]),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all numbers and settings in the format of the file's ending: .json, .csv or .npz.

        Any of them reads back exactly with `load`, and carries a digest of its content. The file is replaced whole or
        not at all.

        Args:
            path: The file.

        Raises:
            ValueError: For another ending.
            FileNotFoundError: If the folder does not exist.
        """
        write_result(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AlignmentReport:
        """Reads a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If it is no such file, or has changed since it was written.
            FileNotFoundError: If there is no such file.
        """
        content = read_result(path)
        return parsed(lambda: cls._of(content), f"path: expected a report that save() wrote in {str(path)!r}")

    def to_dataframe(self) -> DataFrame:
        """One row for each layer, whose name is the index, and one column for each statistic.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = optional_import("pandas", "to_dataframe()", "pip install pandas")
        index = pandas.Index(self.layers, name="layer")
        frame: DataFrame = pandas.DataFrame({k: v.numpy() for k, v in self.statistics.items()}, index=index)
        return frame

    def to_xarray(self) -> Dataset:
        """An xarray Dataset: "value" over layer and statistic.

        Raises:
            ImportError: If xarray is not installed.
        """
        xarray = optional_import("xarray", "to_xarray()", "pip install xarray")
        values = torch.stack(list(self.statistics.values()), 1).numpy()
        coordinates = {"layer": self.layers, "statistic": list(self.statistics)}
        found: Dataset = xarray.Dataset({"value": (("layer", "statistic"), values)}, coordinates)
        return found

    def plot(self, ax: Axes | None = None, *, null: NullLevel | None = None) -> Axes:
        """Alignment by layer, each layer marked by its kind, with a ring around the peak and a cross for each nan.

        Few layers are labelled by name, many by block. Forward and backward alignments, where known, are dashed and
        dotted lines on an axis at the right. Standard errors of estimates are vertical lines.

        Args:
            ax: The matplotlib axes to draw on; by default those of a new figure. They may have another report already.
            null: The alignment to expect by chance, drawn in grey: a number, [L] values, or the report of a measurement
                with shuffled labels.

        Returns:
            The axes drawn on.

        Raises:
            ImportError: If matplotlib is not installed.
            TypeError: If `null` has another type.
            ValueError: For a null level of other layers.
        """
        return plot_report(self, ax, null=null)
