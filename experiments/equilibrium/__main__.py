"""Loss of forward and backward information at large depth, and the layer where they balance, from theory.

Checks theorems 1 and 2 and corollary 1 of the paper on networks of infinite width, by exponents fitted over four
decades of depth; then random networks of finite width: their information by layer, how their tangent kernels approach
the limit, and the alignment with labels that it predicts at initialisation. With the peaks that the study of depth
found in trained networks it says whether theory's equilibrium layer predicts them. Nothing is trained. Each part and
each width is a run of its own, and is not done again when the same command is given once more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments.common import command_line, data
from experiments.common.jobs import Config, Job, Run
from experiments.common.running import Stop, say
from experiments.common.store import RunStore
from experiments.common.study import Study
from experiments.equilibrium import random_networks, theorems, trained_peaks
from experiments.equilibrium.exponents import print_table, row
from experiments.equilibrium.tables import Line, save

INFORMATION, KERNELS, ALIGNMENT = "finite_width", "kernel_convergence", "initial_alignment"  # runs, or parts of names


def options(p: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    command_line.add(p, "--dataset", help="for the alignment at initialisation")
    command_line.add(p, "--data-dir", "--train-size")
    command_line.add(
        p, "--probe-size", default=128, help="training samples to align on, stratified; time grows as n squared"
    )
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
        type=command_line.whole(2 * theorems.LEAST_LAYERWISE),
        default=3_000,
        metavar="L",
        help="greatest depth of networks that are computed layer by layer, in a time that grows as L",
    )
    p.add_argument(
        "--trained-peaks",
        type=Path,
        metavar="FILE",
        help="averaged_curves.csv of a depth_scaling study, to compare its peaks with the equilibrium layer",
    )
    command_line.add(p, "--seed", help="of inputs, weights and subsets")


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message where there are too few widths to fit a slope to."""
    if len(args.widths) < 3:
        p.error(f"argument --widths: expected at least 3 numbers, to fit a slope, got {len(args.widths)}")


def load(args: argparse.Namespace) -> data.Dataset:
    """The data set; refuses a table of peaks that is none."""
    if args.trained_peaks is not None:
        trained_peaks.read(args.trained_peaks)
    return command_line.load(args)


# ---- the runs


def jobs(args: argparse.Namespace, dataset: data.Dataset) -> list[Job]:
    """The study has a run for each theorem, for random networks, and for each width of networks beside the limit."""

    def job(name: str, compute: Callable[[], list[Line]], *options: str, **settings: int) -> Job:
        config: Config = {option: getattr(args, option) for option in options} | settings
        return Job(name, partial(once, compute), settings=config)

    return [
        job(
            INFORMATION,
            partial(random_networks.information, args),
            *("epsilon", "width", "finite_depth", "draws"),
        ),
        job("theorem1", partial(theorems.theorem1, args), "epsilon"),
        job("theorem2", partial(theorems.theorem2, args), "epsilon"),
        job("corollary1", partial(theorems.corollary1, args), "epsilon", "layerwise_depth"),
        *(
            job(part_of(KERNELS, n), partial(random_networks.kernel_errors, args, n), "kernel_draws", width=n)
            for n in sorted(args.widths)
        ),
        *(
            job(
                part_of(ALIGNMENT, n),
                partial(random_networks.initial_alignment, args, dataset, n),
                *("probe_size", "finite_depth"),
                width=n,
            )
            for n in sorted(args.alignment_widths)
        ),
    ]


def part_of(name: str, width: int) -> str:
    """The name of the run of a width."""
    return f"{name}-width{width}"


def once(compute: Callable[[], Sequence[Line]], store: RunStore) -> int:
    """Compute all rows of a run, which has no state on the way; returns the signal that came, or 0."""
    say(store.name)
    with Stop() as stop:
        store.rows.extend(compute())
        store.save({}, finished=True)
    return stop.signal


# ---- what came out


def draw(args: argparse.Namespace, dataset: data.Dataset, runs: dict[str, Run]) -> None:
    """Draw the figures and print the table of exponents."""
    save(args.output, INFORMATION, runs[INFORMATION].rows)
    losses = random_networks.draw_information(args, runs[INFORMATION].rows)
    fits = [
        *theorems.draw_theorem1(args, runs["theorem1"].rows, losses),
        *theorems.draw_theorem2(args, runs["theorem2"].rows),
        *theorems.draw_corollary1(args, runs["corollary1"].rows),
        *random_networks.draw_kernel_convergence(
            args, [line for n in sorted(args.widths) for line in runs[part_of(KERNELS, n)].rows]
        ),
    ]
    of_widths = {n: runs[part_of(ALIGNMENT, n)].rows for n in sorted(args.alignment_widths)}
    random_networks.draw_initial_alignment(args, dataset, of_widths)
    if args.trained_peaks is not None:
        trained_peaks.compare(args, dataset, trained_peaks.read(args.trained_peaks))
    save(args.output, "exponents", [row(fit) for fit in fits])
    print_table(fits)
    print(f"figures: {args.output}")


STUDY = Study(
    "equilibrium",
    __doc__,
    options,
    draw,
    jobs,
    config=("dataset", "seed"),
    distinct=("--widths", "--alignment-widths"),
    check=check,
    load=load,
    trains=False,
    folder="NAME",
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
