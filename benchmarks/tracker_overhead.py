"""Claim tested: following the alignment of all layers through training costs a few percent of the training time.

The paper's network (depth 10, width 256) trains on real images by SGD with batches of 128, an epoch of each loop in
turn: without a tracker, with one at 64 or 256 probe samples every 100 steps or every epoch, and with the same numbers
from torch.func Jacobians, layer by layer. Overhead is stated twice: the time inside of the updates over the time of the
rest of the same loop, and the median epoch over that of the loop without a tracker, which has the noise of both.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import ahkernels as ah
from benchmarks.common import jacobians, script, tables, workload
from benchmarks.common.arguments import positive
from experiments.common import data
from experiments.common.training import Recipe, Trainer

TOLERANCE = 1e-3
JACOBIAN_CHUNK = 16  # samples at a time
COLUMNS = [
    *("method", "probe samples", "measured every", "updates in an epoch", "epoch, s", "one update, ms"),
    *("inside of updates, %", "over the loop without, %"),
]
TEXT = (
    "One epoch of SGD on {name} ({samples:,} images, {batches} steps of {batch}, depth {depth}, width {width}); "
    "medians of {rounds} epochs, the loops in turn. Overhead in percent of the training time: time inside of the "
    "updates over the rest of the same loop, and the epoch over that of the loop without a tracker, in which the noise "
    "of both shows."
)


@dataclass
class Loop:
    """A training loop that measures on so many probe samples at every so many steps."""

    method: str
    n: int
    every: int | None  # steps; None for once an epoch
    trainer: Trainer
    update: Callable[[int], object]
    epochs: list[float] = field(default_factory=list)
    updates: list[list[float]] = field(default_factory=list)

    def epoch(self) -> None:
        """Goes on by one epoch and times it."""
        trainer, inside = self.trainer, []
        first, steps = trainer.iteration, trainer.batches_per_epoch
        start = time.perf_counter()
        for step in range(first, first + steps):
            if self.n and (step - first) % (self.every or steps) == 0:
                before = time.perf_counter()
                self.update(step)
                inside.append(time.perf_counter() - before)
            trainer.step()
        self.epochs.append(time.perf_counter() - start)
        self.updates.append(inside)

    def row(self, without: "Loop") -> list[tables.Cell]:
        epoch = statistics.median(self.epochs)
        if not self.n:
            return [self.method, None, None, 0, round(epoch, 3), None, None, None]
        update = statistics.median(seconds for inside in self.updates for seconds in inside)
        share = [sum(inside) / (total - sum(inside)) for inside, total in zip(self.updates, self.epochs, strict=True)]
        return [
            *(self.method, self.n, f"{self.every} steps" if self.every else "epoch", len(self.updates[0])),
            *(round(epoch, 3), tables.rounded(1e3 * update)),
            tables.rounded(100 * statistics.median(share), 2),
            tables.rounded(100 * (epoch / statistics.median(without.epochs) - 1), 2),
        ]


def problem(args: argparse.Namespace) -> tuple[data.Dataset, torch.nn.Sequential]:
    """Data and the network before training."""
    dataset = data.load("digits") if args.data_dir is None else data.load(args.dataset, args.data_dir)
    return dataset, workload.mlp(args.depth, args.width, dataset.train_x.shape[1], dataset.classes)


def loops(dataset: data.Dataset, model: torch.nn.Sequential, args: argparse.Namespace) -> list[Loop]:
    """The loop without a tracker first; all train alike, each a network of its own."""
    found = []
    for method, n, every in [
        ("without a tracker", 0, None),
        *(("ahkernels", n, every) for n in args.samples for every in (args.every, None)),
        *(("torch.func Jacobians", n, every) for n in args.jacobians for every in (args.every, None)),
    ]:
        own = copy.deepcopy(model)
        trainer = Trainer(own, dataset.train_x, dataset.train_y, Recipe(batch_size=args.batch))
        chosen = data.stratified_subset(dataset.train_y, max(n, 1), seed=0)
        x, y = dataset.train_x[chosen], dataset.train_y[chosen]
        tracker = ah.AlignmentTracker(own, x, y, precision="highest")
        target = torch.nn.functional.one_hot(y, dataset.classes).float()
        updates = {
            "ahkernels": tracker.update,
            "torch.func Jacobians": lambda _, own=own, x=x, target=target: jacobians.layer_by_layer(
                own, x, target, JACOBIAN_CHUNK
            ),
        }
        if n:
            agree(updates["torch.func Jacobians"](0), ah.layerwise_alignment(own, x, y).cka)
        found.append(Loop(method, n, every, trainer, updates.get(method, lambda _: None)))
    return found


def agree(expected: torch.Tensor, cka: torch.Tensor) -> None:
    """Both say the same of the network before training, or the run fails."""
    error = float((cka / expected - 1).abs().max())
    if not error < TOLERANCE:
        raise AssertionError(f"alignments differ by {error:.1e}, more than {TOLERANCE}")


def main() -> None:
    parser = script.parser("tracker_overhead", __doc__, quick="on digits", repeats=5, of_repeats="epochs of each loop")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder that holds the data (default: digits)")
    parser.add_argument("--dataset", default="fashion-mnist", help="set in --data-dir")
    parser.add_argument(
        "--samples", type=positive(int), nargs="*", default=[64, 256], help="probe samples of the tracker"
    )
    parser.add_argument(
        "--jacobians", type=positive(int), nargs="*", default=[64], help="probe samples of the Jacobians"
    )
    parser.add_argument(
        "--every", type=positive(int), default=100, help="steps between measurements, beside once an epoch"
    )
    args = script.parse(parser)
    args.depth, args.width, args.batch = 10, 256, 128
    if args.quick:
        args.data_dir, args.samples, args.jacobians, args.repeats = None, [16], [16], 1
        args.every, args.depth, args.width = 5, 3, 32

    try:
        dataset, model = problem(args)
    except (OSError, ValueError) as reason:
        parser.error(f"argument --data-dir: {reason}")
    every = loops(dataset, model, args)
    for _ in range(args.repeats):
        for loop in every:
            loop.epoch()
            print(f"{loop.method}, {loop.n} samples: {loop.epochs[-1]:.2f} s", flush=True)
    rows = [loop.row(every[0]) for loop in every]
    title = "Overhead of a tracker in training"
    tables.show(title, COLUMNS, rows)
    text = TEXT.format(
        name=dataset.name,
        samples=len(dataset.train_x),
        batches=every[0].trainer.batches_per_epoch,
        batch=args.batch,
        depth=args.depth,
        width=args.width,
        rounds=args.repeats,
    )
    raw = [{"method": one.method, "n": one.n, "epochs_s": one.epochs, "updates_s": one.updates} for one in every]
    script.save(args, **tables.record(title, text, COLUMNS, rows), loops=raw)


if __name__ == "__main__":
    main()
