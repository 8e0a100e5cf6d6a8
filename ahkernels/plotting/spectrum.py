"""Spectra of kernels as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ahkernels.plotting.figures import as_numbers, axes_for
from ahkernels.plotting.layer_axis import shown
from ahkernels.plotting.layer_colours import add_layer_bar, layer_colours
from ahkernels.plotting.legend import add_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ZERO = 1e-10  # of the largest eigenvalue
_MOST_IN_LEGEND = 8  # more layers than this have a bar of colours


def plot_spectrum(eigenvalues: Tensor | Mapping[str, Tensor], ax: Axes | None = None) -> Axes:
    """Draws the eigenvalues of one kernel or of several, from the largest down, on logarithmic axes.

    A dot on each curve is at its stable rank, the sum of the squares of the eigenvalues that are given over the largest
    square: that of `ahkernels.stable_rank` where the others are small. Eigenvalues of less than 1e-10 of the
    largest, the tolerance of `ahkernels.eigenvalues`, do not show.

    Args:
        eigenvalues: [k], as `ahkernels.eigenvalues` returns them, or {layer: [k]}.
        ax: The matplotlib axes to draw on; by default those of a new figure.

    Returns:
        The axes drawn on.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `eigenvalues` has no numbers, or `ax` is no axes.
        ValueError: If the eigenvalues of a layer are no vector of finite numbers, or there are none.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> kernels = ah.tangent_kernels(model, torch.randn(20, 4))
        >>> ax = ah.plot_spectrum({name: ah.eigenvalues(kernel, k=10) for name, kernel in kernels.items()})
        >>> ax.get_xscale(), ax.get_yscale()
        ('log', 'log')
    """
    named = isinstance(eigenvalues, Mapping)
    given = eigenvalues if isinstance(eigenvalues, Mapping) else {"": eigenvalues}
    spectra = {name: _spectrum(name, values) for name, values in given.items()}
    if not spectra:
        raise ValueError("eigenvalues: expected those of at least one layer, got none")
    ax = axes_for("plot_spectrum()", ax)
    size = 6 if len(spectra) <= _MOST_IN_LEGEND else 3
    for (name, values), colour in zip(spectra.items(), layer_colours(len(spectra)), strict=True):
        label = shown(name) if named and len(spectra) <= _MOST_IN_LEGEND else "_"
        index = torch.arange(1, len(values) + 1).tolist()
        ax.plot(index, values.tolist(), "-" if len(values) > 1 else ".", color=colour, lw=1.4, label=label)
        ax.plot(*_stable_rank(values), "o", color=colour, markersize=size, zorder=3)
    ax.plot([], [], "o", color="0.45", label="stable rank")
    ax.set(xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue")
    add_legend([ax])
    if len(spectra) > _MOST_IN_LEGEND:
        add_layer_bar(ax, list(spectra))
    return ax


def _spectrum(name: str, values: Tensor) -> Tensor:
    """The eigenvalues that are not zero, in descending order."""
    found = as_numbers("eigenvalues", values)
    of = f" of layer {name!r}" if name else ""
    if found.dim() != 1:
        raise ValueError(f"eigenvalues: expected shape [k]{of}, got {list(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"eigenvalues: expected finite numbers{of}, got nan or inf")
    least = _ZERO * found.max() if len(found) else 0.0
    return found[(found > 0) & (found >= least)].sort(descending=True).values


def _stable_rank(values: Tensor) -> tuple[list[float], list[float]]:
    """The place of the stable rank on the curve of positive eigenvalues; none if there are none."""
    if len(values) == 0:
        return [], []
    rank = float((values / values[0]).square().sum())
    before = min(int(rank), len(values) - 1)
    first, second = values[before - 1].log(), values[before].log()
    height = first + (second - first) * (math.log(rank / before) / math.log1p(1 / before)) if before else first
    return [rank], [math.exp(height)]
