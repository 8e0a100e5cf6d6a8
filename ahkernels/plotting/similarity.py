"""The similarity of kernels as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ahkernels.plotting.figures import as_numbers, axes_for
from ahkernels.plotting.layer_axis import families_of, label_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_similarity(
    matrix: Tensor, layers: Sequence[str] | None = None, ax: Axes | None = None, *, others: Sequence[str] | None = None
) -> Axes:
    """Draws the alignment of kernels with one another, as `ahkernels.similarity` measures it; grey where it is nan.

    Args:
        matrix: [L, L'], such as the similarity of the layers of one network, or of two.
        layers: Names of the L kernels in the rows, from the top down; by default their numbers, from 1.
        ax: The matplotlib axes to draw on; by default those of a new figure.
        others: Names of the L' kernels in the columns; by default those of the rows if the matrix is square.

    Returns:
        The axes drawn on.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `matrix` has no numbers, names are no texts, or `ax` is no axes.
        ValueError: If `matrix` has another shape than the names.

    Example:
        >>> import torch, ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> kernels = ah.tangent_kernels(model, torch.randn(20, 4))
        >>> ax = ah.plot_similarity(ah.similarity(kernels), list(kernels))
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['0', '2']
    """
    values = as_numbers("matrix", matrix)
    if values.dim() != 2 or values.numel() == 0:
        raise ValueError(f"matrix: expected [L, L'], the similarity of kernels, got shape {list(values.shape)}")
    rows, columns = values.shape
    if others is None and rows == columns:
        others = layers
    of_rows = _names("layers", layers, rows, "row")
    of_columns = _names("others", others, columns, "column")
    ax = axes_for("plot_similarity()", ax, "compressed")
    from matplotlib import colormaps

    colours = colormaps["viridis"].with_extremes(bad="0.7")
    least = min(0.0, float(values.nan_to_num().min()))
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
    image = ax.imshow(values.numpy(), colours, vmin=least, vmax=1, extent=extent, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="alignment of kernels (CKA)")
    for axis, names, draw in ((ax.xaxis, of_columns, ax.axvline), (ax.yaxis, of_rows, ax.axhline)):
        for family in families_of(label_layers(axis, names))[1:]:
            draw(family.start + 0.5, color="white", lw=0.8)
        axis.set_label_text("layer")
    return ax


def _names(argument: str, names: Sequence[str] | None, count: int, what: str) -> list[str]:
    if names is None:
        return [str(number) for number in range(1, count + 1)]
    if not isinstance(names, Sequence):
        raise TypeError(f"{argument}: expected a sequence of names, got {type(names).__name__}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: expected names, got {type(name).__name__} among them")
    if len(names) != count:
        raise ValueError(f"{argument}: expected a name for each {what} of the matrix, {count}, got {len(names)}")
    return list(names)
