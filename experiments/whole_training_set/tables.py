"""The table of alignments on probes and on the whole training set."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.common.store import Row


def print_table(rows: Sequence[Row], alignments: Sequence[Row], samples: int) -> None:
    """Print each layer's alignment on the probes and on the whole set, with times."""
    print(f"alignment with the labels after {rows[-1]['iteration']} iterations:")
    print(f"  {'layer':<6}  {'probes':<17}  {f'{samples:,} images, estimated':<30}  exactly")
    for layer in sorted({int(row["layer"]) for row in alignments}):
        of_layer = [row for row in alignments if row["layer"] == layer]
        probes = [row["cka"] for row in of_layer if row["samples"] < samples]
        line = f"  {layer:<6}  {f'{min(probes):.4f} ... {max(probes):.4f}' if probes else '':<17}"
        for row in of_layer:
            if row["samples"] == samples and row["products"]:
                line += f"  {row['cka']:.4f} ± {row['cka_error']:.4f} in {row['seconds']:.1f} s".ljust(32)
        for row in of_layer:
            if row["samples"] == samples and not row["products"]:
                line += f"  {row['cka']:.4f} in {row['seconds']:.1f} s"
        print(line.rstrip())
    print(f"test accuracy {rows[-1]['test_accuracy']:.1%}, train accuracy {rows[-1]['train_accuracy']:.1%}")
