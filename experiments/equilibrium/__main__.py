"""Loss of forward and backward information at large depth, and the layer where they balance, from theory.

Checks theorems 1 and 2 and corollary 1 of the paper on networks of infinite width, by exponents fitted over four
decades of depth; then random networks of finite width: their information by layer, how their tangent kernels approach
the limit, and the alignment with labels that it predicts at initialisation. Nothing is trained.
"""

from __future__ import annotations

import argparse
import sys

import torch

import ahkernels as ah
from experiments.common import command_line, data
from experiments.common.jobs import Run
from experiments.common.running import say
from experiments.common.store import describe_environment, json_of, write_atomically
from experiments.common.study import Study
from experiments.equilibrium.exponents import print_table, row
from experiments.equilibrium.random_networks import (
    ALIGNMENT_SEEDS,
    finite_width,
    initial_alignment,
    kernel_convergence,
)
from experiments.equilibrium.tables import save
from experiments.equilibrium.theorems import LEAST_LAYERWISE, corollary1, theorem1, theorem2

CONFIG = (
    *("dataset", "train_size", "probe_size", "epsilon", "width", "finite_depth", "draws", "widths"),
    *("alignment_widths", "kernel_draws", "layerwise_depth", "seed"),
)


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", help="for the alignment at initialisation")
    command_line.add(p, "--data-dir", "--train-size")
    command_line.add(p, "--probe-size", help="training samples to align on, stratified; time grows as n squared")
    p.add_argument(
        "--epsilon",
        type=command_line.real("a number in (0, 1)", lambda value: 0 < value < 1),
        default=0.1,
        help="of the set of inputs: correlations of at most 1 - epsilon",
    )
    command_line.add(p, "--width", help="units of a hidden layer of the random networks")
    p.add_argument(
        "--finite-depth", type=command_line.whole(2), default=20, metavar="L", help="linear layers of random networks"
    )
    p.add_argument(
        "--draws", type=command_line.whole(4), default=16, metavar="K", help="random networks to average over"
    )
    p.add_argument(
        "--widths",
        type=command_line.whole(1),
        nargs="+",
        default=[64, 128, 256, 512, 1024],
        metavar="N",
        help="of the networks whose kernels are compared with the limit",
    )
    p.add_argument(
        "--alignment-widths",
        type=command_line.whole(1),
        nargs="+",
        default=[64, 256, 1024],
        metavar="N",
        help="of the networks whose alignment at initialisation is compared with the limit's",
    )
    p.add_argument("--kernel-draws", type=command_line.whole(1), default=24, metavar="K", help="networks of each width")
    p.add_argument(
        "--layerwise-depth",
        type=command_line.whole(2 * LEAST_LAYERWISE),
        default=10_000,
        metavar="L",
        help="greatest depth of networks that are computed layer by layer, in a time that grows as L",
    )
    command_line.add(p, "--seed", help="of inputs, weights and subsets")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where there are too few widths to fit a slope to."""
    if len(args.widths) < 3:
        p.error(f"argument --widths: expected at least 3 numbers, to fit a slope, got {len(args.widths)}")


def draw(args: argparse.Namespace, dataset: data.Dataset, _: dict[str, Run]) -> None:
    """Compute all numbers, draw the figures and print the table of exponents."""
    config = command_line.values(args, CONFIG) | dataset.describe()
    environment = describe_environment(torch.device("cpu"), ah.build_info())
    for name, content in (("config", config), ("environment", environment)):
        write_atomically(args.output / f"{name}.json", json_of(content))
    say(f"{args.draws} random networks of width {args.width} and depth {args.finite_depth}")
    losses = finite_width(args)
    say("theorems 1 and 2 and corollary 1")
    fits = [*theorem1(args, losses), *theorem2(args), *corollary1(args)]
    say(f"{args.kernel_draws} networks of each of {len(args.widths)} widths")
    fits += kernel_convergence(args)
    say(f"alignment of {len(ALIGNMENT_SEEDS)} networks of each of {len(args.alignment_widths)} widths")
    initial_alignment(args, dataset)
    save(args.output, "exponents", [row(fit) for fit in fits])
    print_table(fits)
    print(f"figures: {args.output}")


STUDY = Study(
    "equilibrium",
    __doc__,
    options,
    draw,
    distinct=("--widths", "--alignment-widths"),
    check=check,
    folder="NAME",
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
