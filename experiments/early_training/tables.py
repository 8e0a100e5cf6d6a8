"""The tables of correlations along training and of eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.common.figures import column
from experiments.common.store import Row
from experiments.early_training.figure import CHANGES, Moment


def collinearity(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Make one line for each measurement: -corr(w, y~) of the seeds, and their mean test accuracy."""
    values, accuracies = column(runs, "collinearity"), column(runs, "test_accuracy")
    return [
        {
            "iteration": row["iteration"],
            "epoch": row["epoch"],
            "seeds": len(runs),
            "mean": float(values[:, i].mean()),
            "least": float(values[:, i].min()),
            "greatest": float(values[:, i].max()),
            "test_accuracy": float(accuracies[:, i].mean()),
        }
        for i, row in enumerate(runs[0])
    ]


def print_tables(rows: Sequence[Row], found: Sequence[Moment], of_seeds: Sequence[Row]) -> None:
    """Print -corr(w, y~), and about the first seed correlations along training and what belongs to each moment.

    Args:
        rows: The measurements of the first seed.
        found: Its moments, of which eigenvalues are printed, and energies and correlations by layer.
        of_seeds: Lines of ``collinearity``.
    """
    for line in of_seeds:
        print(
            f"-corr(w, y~) at iteration {line['iteration']}: {line['mean']:.4f} "
            f"({line['least']:.4f} ... {line['greatest']:.4f}; seeds: {line['seeds']})"
        )
    columns = {"-corr(w, y~)": "collinearity"} | {text: f"{name}_correlation" for name, text in CHANGES.items()}
    print("gradient w against labels y~, and correlation of changes of the features Psi y~ with -H_w Psi y~:")
    heads = "".join(f"  {text:>{max(12, len(text))}}" for text in columns)
    print(f"  {'iteration':>9}  {'epoch':>6}  {'train loss':>10}  {'test acc.':>9}{heads}")
    for row in rows:
        values = "".join(f"  {row[name]:>{max(12, len(text))}.4f}" for text, name in columns.items())
        print(
            f"  {row['iteration']:>9}  {row['epoch']:>6.3f}  {row['train_loss']:>10.4f}  "
            f"{row['test_accuracy']:>9.1%}{values}"
        )
    for moment in found:
        eigenvalues = moment.eigenvalues
        print(
            f"{len(eigenvalues)} eigenvectors of H_w at {moment.when}: |eigenvalue| {abs(eigenvalues[0]):.4g} ... "
            f"{abs(eigenvalues[-1]):.4g}; correlations in their span: "
            + ", ".join(f"{moment.correlation(name):.3f} ({text})" for name, text in CHANGES.items())
        )
        width = max(map(len, moment.layers))
        print(f"  {'layer':<{width}}  {'energy, mean':>12}  {'weighted':>8}" + "".join(f"  {t:>12}" for t in CHANGES))
        of_layers = zip(moment.layers, moment.energies.mean(axis=0), moment.weighted_energies, strict=True)
        for layer, mean, weighted in of_layers:
            by_layer = "".join(f"  {moment.row[f'{name}_correlation/{layer}']:>12.4f}" for name in CHANGES)
            print(f"  {layer:<{width}}  {mean:>12.4f}  {weighted:>8.4f}{by_layer}")
