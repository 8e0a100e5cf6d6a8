"""Early training: how tangent features move with the output Hessian (figures 5 and 6; appendices B.4 and B.5).

Tests Approximation 1 of the paper along the training of a network. Its first half: the gradient w of the loss by the
outputs points against the centered labels y~. Its second half: a step changes the tangent features along y~, Psi y~, in
the direction of -H_w Psi y~, where H_w is the output Hessian. At a few moments also the eigenvectors of H_w with the
greatest eigenvalues: which layers they move. Without arguments it trains on scikit-learn's digits. A run that was
interrupted goes on when the same command is given again, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.sparse.linalg import ArpackError
from torch import Tensor, nn

import ahkernels as ah
from experiments.common import command_line, data, figures, models
from experiments.common.hessian import OutputHessian, ParameterVector, centered_labels, features, loss_gradient
from experiments.common.measuring import aligned_progress
from experiments.common.running import opened, run, say, stopped
from experiments.common.store import Row, RunStore, describe_environment
from experiments.common.training import DivergedError, Trainer, measurement_grid
from experiments.early_training import figure
from experiments.early_training.figure import CHANGES, Moment

TABLE = "eigenvectors"
DIGITS = 6  # of a number in it

PAPER = {"batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 5, "measurements": 30}
FEEDFORWARD = PAPER | {"model": "feedforward", "depth": 10, "width": 256, "lr": 0.003, "probe_size": 1000}
FEEDFORWARD |= {"eigenvectors": 100, "moments": [0.0, 0.05]}
# The output Hessian of ResNet18 holds 60 MB a sample.
IMAGES = PAPER | {"width_factor": 1.0, "lr": 0.01, "probe_size": 500, "eigenvectors": 0}
PRESETS: dict[str, Mapping[str, Any]] = {
    **{name: FEEDFORWARD | {"dataset": name} for name in ("fashion-mnist", "mnist", "kmnist", "cifar10")},
    **{
        f"{dataset}-{model}": IMAGES | {"dataset": dataset, "model": model}
        for dataset in ("cifar10", "cifar100")
        for model in ("vgg19", "resnet18")
    },
}


# ---- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.command_line(__doc__)
    command_line.add(p, "--dataset", "--data-dir", "--train-size", "--model")
    command_line.add(
        p, "--depth", type=command_line.whole(2), help="linear layers (feedforward); one has no output Hessian"
    )
    command_line.add(p, "--width", default=128, help="units of a hidden layer (feedforward)")
    command_line.add(p, "--width-factor", "--lr", "--momentum", "--weight-decay", "--batch-size")
    command_line.add(p, "--epochs", default=20)
    command_line.add(p, "--probe-size", help="training samples to measure on, stratified")
    command_line.add(p, "--measurements")
    p.add_argument(
        "--eigenvectors",
        type=command_line.whole(0),
        default=100,
        metavar="K",
        help="of the output Hessian, those with the greatest absolute eigenvalues; 0: none",
    )
    p.add_argument(
        "--moments",
        type=command_line.real("a number of at least 0", lambda value: value >= 0),
        nargs="+",
        default=[0.0, 2.0],
        metavar="E",
        help="epochs, also fractions of one, after which to compute eigenvectors, besides the end of training",
    )
    command_line.add(p, "--precision", help="of the alignments; Hessians and features are computed in float64")
    command_line.add(p, "--seed", help="of weights, batches and subsets")
    p.add_argument("--output", type=Path, help="folder for the results (default: runs/early_training-DATASET[-MODEL])")
    command_line.add(p, "--overwrite", help="discard this seed's run in the output folder")
    command_line.add(p, "--checkpoint-every", "--threads", "--device")
    return p


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; exits with a message that names the option if a value is wrong."""
    p = parser()
    args = command_line.parse(p, PRESETS, arguments)
    command_line.require_data_dir(p, args)
    if max(args.moments) > args.epochs:
        p.error(f"argument --moments: expected at most {args.epochs}, the epochs, got {max(args.moments):g}")
    model = "" if args.model == "feedforward" else f"-{args.model}"
    args.output = args.output or Path("runs") / f"early_training-{args.dataset}{model}"
    return args


# ---- one measurement


@dataclass(frozen=True)
class Evolution:
    """Psi y~ at a moment of training: how it changes, and how H_w says it does; vectors [P] in float64.

    Attributes:
        theta: the parameters of a copy of the network.
        hessian: H_w for the mean loss on the probe.
        collinearity: -corr(w, y~). Both have mean zero, w because softmax and label sum to the same for every sample,
            so that Pearson's correlation is the cosine.
        predicted: -H_w Psi y~.
        changes: by the names in CHANGES.
    """

    theta: ParameterVector
    hessian: OutputHessian
    collinearity: float
    predicted: Tensor
    changes: dict[str, Tensor]


def cosine(a: Tensor, b: Tensor) -> float:
    """<a, b> / (|a| |b|) over all entries; nan where one of them is zero."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def next_parameters(trainer: Trainer) -> Tensor:
    """theta(t + 1), [P]: those after the step that training takes next, which a copy of the trainer takes."""
    ahead = Trainer(copy.deepcopy(trainer.model), trainer.x, trainer.y, trainer.recipe)
    ahead.restore(trainer.state())
    ahead.step()
    return ParameterVector(ahead.model).get()


def features_at(model: nn.Module, vector: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Psi v, [P], of a model with other parameters [P]; the running statistics of its norm layers stay."""
    there = copy.deepcopy(model)
    theta = ParameterVector(there)
    theta.set(vector)
    return features(theta, there(x), v)


def evolution(trainer: Trainer, x: Tensor, y: Tensor) -> Evolution:
    """On a probe x: [n, d], y: [n]; changes nothing.

    In float64: in float32 the change in a step has a relative error of 1e-6, but now and then one of 1e-2, where a ReLU
    is so close to its kink that rounding decides on its side.
    """
    model = copy.deepcopy(trainer.model).double().eval()
    x = x.double()
    theta, outputs = ParameterVector(model), model(x)
    w, labels = loss_gradient(outputs, y), centered_labels(y, outputs.shape[1], outputs.dtype)
    of_loss, of_labels = OutputHessian(theta, outputs, w), OutputHessian(theta, outputs, labels)
    full_batch = theta.get() - trainer.recipe.lr * of_loss.features
    return Evolution(
        theta,
        of_loss,
        -cosine(w, labels),
        -(of_loss @ of_labels.features),
        {
            "step": features_at(model, next_parameters(trainer), x, labels) - of_labels.features,
            "full_batch": features_at(model, full_batch, x, labels) - of_labels.features,
            "infinitesimal": -(of_labels @ of_loss.features),
        },
    )


def correlations(of: Evolution) -> Row:
    """Columns collinearity, and <change>_correlation with what H_w predicts, then those of each layer alone.

    They are cosines, which a rotation of all parameters, such as that into a basis of eigenvectors, leaves as they are.
    """
    row = {"collinearity": of.collinearity}
    energy = of.theta.inner_products(of.predicted, of.predicted)
    for name, change in of.changes.items():
        row[f"{name}_correlation"] = cosine(change, of.predicted)
        products = of.theta.inner_products(change, of.predicted)
        by_layer = products / (of.theta.inner_products(change, change) * energy).sqrt()
        row |= {f"{name}_correlation/{layer}": v for layer, v in zip(of.theta.layers, by_layer.tolist(), strict=True)}
    return row


def eigenvectors(of: Evolution, iteration: int, count: int) -> list[Row]:
    """The top eigenpairs of H_w, greatest absolute eigenvalue first, a line for each.

    Columns eigenvalue, energy/<layer>: the squared norm of the eigenvector's part in a layer, and coordinate/<change>:
    of each change, and of the predicted one, over its norm, in the basis of eigenvectors.

    Raises:
        DivergedError: if there are none to be found: the output Hessian of a dead network is zero.
    """
    try:
        pairs = of.hessian.top(count)
    except ArpackError as error:
        raise DivergedError(f"no eigenvectors of the output Hessian at iteration {iteration} ({error})") from error
    vectors = torch.from_numpy(pairs.vectors)
    columns = {"eigenvalue": torch.from_numpy(pairs.values)}
    energies = of.theta.inner_products(vectors, vectors)
    columns |= {f"energy/{layer}": values for layer, values in zip(of.theta.layers, energies, strict=True)}
    changes = {"predicted": of.predicted, **of.changes}
    columns |= {f"coordinate/{name}": (v / v.norm()).cpu() @ vectors for name, v in changes.items()}
    return [
        {"iteration": iteration, "index": i}
        | {name: float(f"{values[i - 1]:.{DIGITS}g}") for name, values in columns.items()}
        for i in range(1, count + 1)
    ]


# ---- one run


def config(args: argparse.Namespace, dataset: data.Dataset) -> dict[str, Any]:
    """All that determines a run's numbers, up to the machine it runs on."""
    names = ("dataset", "model", *models.size_options(args), "probe_size", "measurements", "eigenvectors", "moments")
    return command_line.config(args, dataset, (*names, "precision"))


def moments(args: argparse.Namespace, trainer: Trainer) -> set[int]:
    """The iterations at which to compute eigenvectors."""
    if args.eigenvectors == 0:
        return set()
    return {trainer.total, *(round(epochs * trainer.batches_per_epoch) for epochs in args.moments)}


def train(store: RunStore, name: str, args: argparse.Namespace, model: nn.Module, dataset: data.Dataset) -> int:
    """Train to the end; returns the signal that came, or 0."""
    trainer = Trainer(model, dataset.train_x, dataset.train_y, command_line.recipe(args))
    probe = data.stratified_subset(dataset.train_y, args.probe_size, args.seed).to(args.device)
    x, y = dataset.train_x[probe], dataset.train_y[probe]
    with_eigenvectors = moments(args, trainer)

    def measured() -> Row:
        row = aligned_progress(trainer, dataset, x, y, args.precision)
        found = evolution(trainer, x, y)
        if trainer.iteration in with_eigenvectors:
            say(f"{name}: iteration {trainer.iteration}: {args.eigenvectors} eigenvectors of the output Hessian")
            rows = eigenvectors(found, trainer.iteration, args.eigenvectors)
            store.tables[TABLE] = [*store.tables.get(TABLE, []), *rows]
        return row | correlations(found)

    at = {*measurement_grid(trainer.total, args.measurements), *with_eigenvectors}
    try:
        return run(store, trainer, name, at, measured, args.checkpoint_every)
    except DivergedError as error:
        raise DivergedError(f"{name}: {error}; choose a smaller --lr and another --output") from error


# ---- the study


def print_tables(rows: Sequence[Row], found: Sequence[Moment]) -> None:
    """Correlations along training; then at each moment the eigenvalues, and energies and correlations by layer."""
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
        values = moment.eigenvalues
        print(
            f"{len(values)} eigenvectors of H_w at {moment.when}: |eigenvalue| {abs(values[0]):.4g} ... "
            f"{abs(values[-1]):.4g}; correlations in their span: "
            + ", ".join(f"{moment.correlation(name):.3f} ({text})" for name, text in CHANGES.items())
        )
        width = max(map(len, moment.layers))
        print(f"  {'layer':<{width}}  {'energy, mean':>12}  {'weighted':>8}" + "".join(f"  {t:>12}" for t in CHANGES))
        of_layers = zip(moment.layers, moment.energies.mean(axis=0), moment.weighted_energies, strict=True)
        for layer, mean, weighted in of_layers:
            by_layer = "".join(f"  {moment.row[f'{name}_correlation/{layer}']:>12.4f}" for name in CHANGES)
            print(f"  {layer:<{width}}  {mean:>12.4f}  {weighted:>8.4f}{by_layer}")


def title(args: argparse.Namespace, dataset: data.Dataset) -> str:
    """What a reader must know about the figure: data, network and recipe."""
    return (
        f"{args.dataset}, {len(dataset.train_y):,} training images: {models.described(args)}, seed {args.seed}\n"
        f"learning rate {args.lr:g}, batch size {args.batch_size}, momentum {args.momentum:g}, "
        f"measured on {args.probe_size:,} training images"
    )


def study(args: argparse.Namespace) -> int:
    """The run, the figure and the tables; returns the exit status."""
    dataset = command_line.load(args)
    model = models.network(args, dataset).to(args.device)
    most = ParameterVector(model).size - 1
    if args.eigenvectors > most:
        raise command_line.UsageError(
            f"argument --eigenvectors: expected at most {most}, one less than the parameters, got {args.eigenvectors}"
        )
    environment = describe_environment(args.device, ah.build_info())
    name = f"seed-{args.seed}"
    with opened(args.output, {name: config(args, dataset)}, environment, args.overwrite, tables=[TABLE]) as stores:
        store = stores[name]
        if not store.finished and (number := train(store, name, args, model, dataset.to(args.device))):
            return stopped(store, name, number)
        rows, found = store.rows, figure.moments(store.rows, store.tables.get(TABLE, []))
    paths = figures.files(args.output, "early_training")
    figure.early_training(rows, found, title(args, dataset), paths)
    print_tables(rows, found)
    print(f"figure: {paths[-1]}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
    return command_line.finish(__file__, study, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
