"""The tables of eigenvalues and of ranks and correlations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import ahkernels as ah
from experiments.common.figures import layer_names
from experiments.common.store import Row
from experiments.spectrum.figure import Outcome

DIGITS = 8  # significant digits in the table; an eigenvalue is known to 1e-10 of the largest


def spectra(model: nn.Module, x: Tensor, layers: Sequence[str], count: int, precision: str) -> list[Row]:
    """The largest eigenvalues of every layer's C K C from the largest down, with a column for each layer."""
    with ah.evaluating(model):
        values = {
            layer: ah.eigenvalues(kernel, count).tolist()
            for layer, kernel in ah.iter_tangent_kernels(model, x, layers=layers, precision=precision)
        }
    return [
        {"index": i + 1, **{layer: float(f"{of_layer[i]:.{DIGITS}g}") for layer, of_layer in values.items()}}
        for i in range(count)
    ]


def print_tables(outcomes: Sequence[Outcome], count: int) -> None:
    """Print each condition's numbers by layer at the end, then the layers where Fisher's stable rank is the greater."""
    columns = {
        "alignment": "cka",
        "stable rank": "stable_rank",
        "correlation": "label_correlation",
        "Fisher rank": "fisher_stable_rank",
        "Fisher corr.": "fisher_label_correlation",
    }
    tail = f"λ{count} / λ1"
    greater: dict[str, list[str]] = {outcome.name: [] for outcome in outcomes}
    for outcome in outcomes:
        last, layers = outcome.rows[-1], layer_names(outcome.rows)
        print(
            f"{outcome.name}: test accuracy {last['test_accuracy']:.1%}, train accuracy {last['train_accuracy']:.1%}, "
            f"test loss {last['test_loss']:.3f}, train loss {last['train_loss']:.3f}"
        )
        width = max(map(len, ["layer", *layers]))
        print(f"  {'layer':<{width}}" + "".join(f"  {name:>12}" for name in (*columns, tail)))
        for layer, relative in zip(layers, outcome.relative_eigenvalues.T, strict=True):
            values = [last[f"{column}/{layer}"] for column in columns.values()]
            print(f"  {layer:<{width}}" + "".join(f"  {v:>12.4f}" for v in values) + f"  {relative[-1]:>12.1e}")
            rank, fisher = values[1], values[3]
            if fisher > rank:
                greater[outcome.name].append(f"{layer} ({fisher:.2f} to {rank:.2f})")
    print("where the Fisher information's stable rank exceeds the kernel's:")
    for name, where in greater.items():
        print(f"  {name}: {', '.join(where) or 'nowhere'}")
