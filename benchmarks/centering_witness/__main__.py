"""Claim tested: centering="per_output" gives the alignments that NNGeometry gives with its own centering, to 1e-5.

NNGeometry, whose Jacobian generator with centering=True made the paper's figures, takes from the Jacobian of each
output its mean over the samples (`grads -= grads.mean(dim=1)`, of [outputs, samples, parameters]), and from a kernel
the same by I - 11^T/n on the sample index of both sides; no mean is ever taken over the outputs. Both its ways are run,
on the same networks and samples, in float32 and float64: the centered Jacobian, and the centered kernel that the
authors took. The global alignment of equation 6 stands beside, as what a wrong centering would give. Ends with status 1
where a layer differs by more than the tolerance, and with status 2 where NNGeometry cannot be run.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.centering_witness import nngeometry_centered
from benchmarks.centering_witness.agreement import TOLERANCE, Alignments, Layer, largest, side_by_side, verdict
from benchmarks.common import arguments, json_file, machine, ours, tables, workload
from benchmarks.common.script import RESULTS
from benchmarks.comparison import environments, measuring
from benchmarks.comparison.contenders import nngeometry
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import Task
from benchmarks.comparison.worker_process import Refused, WorkerProcess

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
Witness = Callable[[Problem, str], Alignments]  # NNGeometry's, by one of its ways


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


def nngeometry_by(worker: WorkerProcess, folder: Path) -> Witness:
    """NNGeometry's alignments, from a process of its own environment."""

    def alignments(problem: Problem, variant: str) -> Alignments:
        problem.save(folder / measuring.PROBLEM)
        measuring.make_job(worker, nngeometry_centered.__name__, variant, problem.task, folder, SECONDS)
        found = measuring.value_of(worker, variant, folder, SECONDS)
        names = nngeometry_centered.layers_of(nngeometry_centered.network(problem.task))
        return dict(zip(names, found.tolist(), strict=True))

    return alignments


def compare(problem: Problem, witness: Witness) -> list[Layer]:
    """Every layer of one network."""
    x, y = problem.tensors()
    found = ours.layerwise_by_centering(nngeometry_centered.network_of(problem), x, y)
    theirs = {variant: witness(problem, variant) for variant in nngeometry_centered.VARIANTS}
    return side_by_side(problem.task.network, problem.x.dtype.name, found, theirs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.centering_witness", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=arguments.positive(int), default=60, help="n")
    parser.add_argument("--threads", type=arguments.positive(int), help="cores to use (default: all)")
    parser.add_argument(
        "--environments", type=arguments.folder, default=environments.DEFAULT, help="folder of virtual environments"
    )
    parser.add_argument("--output", type=arguments.file, default=RESULTS / "centering_witness.json")
    args = parser.parse_args()
    args.threads = machine.use_threads(args.threads)
    try:
        python = environments.python_of(nngeometry.REQUIREMENTS, args.environments)
        versions = environments.versions(python, ["nngeometry", "torch"])
        worker = WorkerProcess(python, args.threads, None)
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
        print(f"benchmarks.centering_witness: error: NNGeometry cannot be run: {reason}", file=sys.stderr)
        return 2
    rows = [one.cells() for one in layers]
    tables.show(TITLE, COLUMNS, rows)
    text = TEXT.format(n=args.samples, o=tasks[0].outputs, **NETWORKS["mlp"])
    raw = {"tolerance": TOLERANCE, "versions": versions, "largest": largest(layers)}
    record = tables.record(TITLE, text, COLUMNS, rows) | {"machine": machine.describe()}
    json_file.write(args.output, record | raw | {"layers": [asdict(one) for one in layers]})
    return verdict(layers)


if __name__ == "__main__":
    sys.exit(main())
