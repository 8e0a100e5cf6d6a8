"""Claim tested: centering="per_output" gives the alignments that NNGeometry gives with its own centering, to 1e-5.

NNGeometry, whose Jacobian generator with centering=True made the paper's figures, takes from the Jacobian of each
output its mean over the samples (`grads -= grads.mean(dim=1)`, of [outputs, samples, parameters]), and from a kernel
the same by I - 11^T/n on the sample index of both sides; no mean is ever taken over the outputs. Both its ways are run,
on the same networks and samples, in float32 and float64: the centered Jacobian, and the centered kernel that the
authors took. The global alignment of equation 6 stands beside, as what a wrong centering would give. Ends with status 1
where a layer differs by more than the tolerance, and with status 2 where NNGeometry cannot be run.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import machine, nngeometry_centered, page_table, results, workload
from comparison import environments, options
from comparison.contenders import nngeometry
from comparison.problem import Problem
from comparison.processes import ROOT, Refused, Worker
from comparison.tasks import Task

TOLERANCE = 1e-5  # of an alignment, relative
NETWORKS = {"mlp": {"depth": 10, "width": 64}, "convolutional": {}}
NUMBERS = ("float32", "float64")
SECONDS = 300  # for one request
TITLE = "Centering per output beside NNGeometry's"
TEXT = (
    "Alignments of layers at initialisation from {n} samples of {o} classes. Both networks are ReLU networks with "
    "biases: an MLP of depth {depth} and width {width}, and three convolutions below a dense layer. NNGeometry centers "
    "the Jacobian of a layer, or its kernel once it is formed, in the numbers of the network; its own product with the "
    "labels and its own norm then give the alignment, in float64. Differences are relative to ours per output."
)
COLUMNS = [
    "network",
    "numbers",
    "layer",
    "ours, per output",
    "NNGeometry, centered Jacobian",
    "difference",
    "NNGeometry, centered kernel",
    "difference",
    "ours, global",
]
Alignments = Mapping[str, float]  # by the name of the layer
Witness = Callable[[Problem, str], Alignments]  # of a problem, by one of the ways of NNGeometry


@dataclass(frozen=True)
class Layer:
    """What was found of one layer; `theirs` and `differences` are by the way of NNGeometry."""

    network: str
    numbers: str
    layer: str
    ours: float
    theirs: dict[str, float]
    differences: dict[str, float]
    ours_global: float

    @property
    def agrees(self) -> bool:
        return all(one <= TOLERANCE for one in self.differences.values())  # False for nan

    def cells(self) -> list[page_table.Cell]:
        cells: list[page_table.Cell] = [self.network, self.numbers, self.layer, page_table.rounded(self.ours, 8)]
        for variant, value in self.theirs.items():
            cells += [page_table.rounded(value, 8), page_table.rounded(self.differences[variant], 2)]
        return [*cells, page_table.rounded(self.ours_global, 8)]


def differences(found: Alignments, expected: Alignments) -> dict[str, float]:
    """Relative, layer by layer; nan for a layer that only one of the two has, and where what is expected is 0."""
    layers = dict.fromkeys([*expected, *found])
    pairs = {layer: (found.get(layer, math.nan), expected.get(layer, math.nan)) for layer in layers}
    return {layer: abs(one - other) / abs(other) if other else math.nan for layer, (one, other) in pairs.items()}


def make_problem(task: Task, numbers: str) -> Problem:
    """The network at He initialisation with biases that are not 0, the same at both precisions."""
    x, y = workload.images(task.n, outputs=task.outputs)
    model, drawn = nngeometry_centered.network(task), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=drawn)
        else:
            torch.nn.init.normal_(parameter, std=0.1, generator=drawn)
    state = {name: value.numpy().astype(numbers) for name, value in model.state_dict().items()}
    return Problem(task, x.numpy().astype(numbers), y.numpy(), state=state)


def nngeometry_by(worker: Worker, folder: Path) -> Witness:
    """NNGeometry's alignments, from a process of its own environment."""

    def alignments(problem: Problem, variant: str) -> Alignments:
        given, value = folder / "problem.npz", folder / "value.npy"
        problem.save(given)
        what = {"contender": nngeometry_centered.__name__, "task": problem.task.to_dict(), "problem": str(given)}
        worker.ask(SECONDS, do="prepare", variant=variant, **what)
        worker.ask(SECONDS, do="peak", variant=variant)  # runs the job, whose memory is of no interest here
        worker.ask(SECONDS, do="value", variant=variant, path=str(value))
        worker.ask(SECONDS, do="forget", variant=variant)
        names = nngeometry_centered.layers_of(nngeometry_centered.network(problem.task))
        return dict(zip(names, np.load(value).tolist(), strict=True))

    return alignments


def compare(problem: Problem, witness: Witness) -> list[Layer]:
    """Every layer of one network."""
    from common import ours

    x, y = problem.tensors()
    found = ours.layerwise_by_centering(nngeometry_centered.network_of(problem), x, y)
    theirs = {variant: witness(problem, variant) for variant in nngeometry_centered.VARIANTS}
    return side_by_side(problem.task.network, problem.x.dtype.name, found, theirs)


def side_by_side(
    network: str, numbers: str, ours: Mapping[str, Alignments], theirs: Mapping[str, Alignments]
) -> list[Layer]:
    """`ours` by centering, `theirs` by the way of NNGeometry; also layers that only one of them has."""
    own = ours["per_output"]
    apart = {variant: differences(values, own) for variant, values in theirs.items()}
    return [
        Layer(
            network,
            numbers,
            layer,
            own.get(layer, math.nan),
            {variant: values.get(layer, math.nan) for variant, values in theirs.items()},
            {variant: values.get(layer, math.nan) for variant, values in apart.items()},
            ours["global"].get(layer, math.nan),
        )
        for layer in dict.fromkeys([*own, *(name for values in theirs.values() for name in values)])
    ]


def largest(layers: Sequence[Layer]) -> dict[str, dict[str, float]]:
    """The largest difference of each network, by the way of NNGeometry."""
    found: dict[str, dict[str, float]] = {}
    for one in layers:
        of_network = found.setdefault(f"{one.network}, {one.numbers}", {})
        for variant, value in one.differences.items():
            of_network[variant] = float(np.maximum(of_network.get(variant, 0.0), value))  # nan where there is one
    return found


def verdict(layers: Sequence[Layer]) -> int:
    """Exit status, and why."""
    for network, found in largest(layers).items():
        print(f"{network}: largest difference " + ", ".join(f"{value:.1e} ({way})" for way, value in found.items()))
    wrong = [one for one in layers if not one.agrees]
    for one in wrong:
        apart = ", ".join(f"{value:.1e} ({way})" for way, value in one.differences.items())
        print(f"{one.network}, {one.numbers}, layer {one.layer}: {apart}, more than {TOLERANCE:g}", file=sys.stderr)
    return int(bool(wrong) or not layers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=options.positive(int), default=60, help="n")
    parser.add_argument("--threads", type=options.positive(int), help="cores to use (default: all)")
    parser.add_argument(
        "--environments", type=options.folder, default=environments.DEFAULT, help="folder of virtual environments"
    )
    parser.add_argument("--output", type=options.file, default=results.DIRECTORY / "centering_witness.json")
    args = parser.parse_args()
    args.threads = machine.use_threads(args.threads)
    try:
        python = environments.python_of(nngeometry.REQUIREMENTS, args.environments)
        versions = environments.versions(python, ["nngeometry", "torch"])
        worker = Worker(python, ROOT, args.threads, None)
        try:
            with tempfile.TemporaryDirectory() as folder:
                witness = nngeometry_by(worker, Path(folder))
                tasks = [Task("alignment", name, n=args.samples, **shape) for name, shape in NETWORKS.items()]
                layers = [
                    layer
                    for task in tasks
                    for numbers in NUMBERS
                    for layer in compare(make_problem(task, numbers), witness)
                ]
        finally:
            if worker.alive:
                worker.close()
    except (environments.InstallationError, Refused) as reason:
        print(f"centering_witness.py: error: NNGeometry cannot be run: {reason}", file=sys.stderr)
        return 2
    rows = [one.cells() for one in layers]
    page_table.show(TITLE, COLUMNS, rows)
    text = TEXT.format(n=args.samples, o=tasks[0].outputs, **NETWORKS["mlp"])
    raw = {"tolerance": TOLERANCE, "versions": versions, "largest": largest(layers)}
    page_table.save(args.output, TITLE, text, COLUMNS, rows, **raw, layers=[asdict(one) for one in layers])
    return verdict(layers)


if __name__ == "__main__":
    sys.exit(main())
