"""What a measurement takes in the studies of image networks: VGG19 and ResNet18 of a quarter of the width, n = 200.

Both centerings as in the study of hyperparameters, one with the statistics of the study of spectra, and the 200
largest eigenvalues of every layer's kernel. Every one runs alone in a fresh process, for its peak of memory. The floor
is that of the alignments: the flops of the passes and of each layer's route at the best fp32 GEMM rate of this run.
"""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.common import floor, machine, memory, ours, results, script, timing, workload
from benchmarks.common.arguments import positive

WIDTH, OUTPUTS, EIGENVALUES = 0.25, 10, 200
MEASUREMENTS: dict[str, Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], object]] = {
    "alignment, both centerings": partial(ours.layerwise_reports, centering=("per_output", "global")),
    "with ranks and correlations": partial(
        ours.layerwise_reports,
        statistics=("stable_rank", "label_correlation", "fisher_stable_rank", "fisher_label_correlation"),
    ),
    f"{EIGENVALUES} eigenvalues": lambda model, x, y: ours.spectra(model, x, min(EIGENVALUES, len(x) * OUTPUTS)),
}


def setup(measurement: str, name: str, n: int, threads: int) -> Callable[[], object]:
    """A measurement, warmed up on four samples (for memory.peak)."""
    machine.use_threads(threads)
    job = MEASUREMENTS[measurement]
    job(*workload.image_network(name, 4, OUTPUTS, width=WIDTH))
    return partial(job, *workload.image_network(name, n, OUTPUTS, width=WIDTH))


def main() -> None:
    parser = script.parser("image_studies", __doc__, quick="at n = 4", repeats=3, of_repeats="runs")
    parser.add_argument("--samples", type=positive(int), default=200, help="n")
    args = script.parse(parser)
    n, repeats = (4, 1) if args.quick else (args.samples, args.repeats)
    best = script.measure_ceilings(args)
    tables = []
    for name in ("vgg19 without norms", "resnet18"):
        model, x, _ = workload.image_network(name, n, OUTPUTS, width=WIDTH)
        least, rows = floor.image_network(model, x, OUTPUTS), []
        for measurement in MEASUREMENTS:
            peaks = [memory.peak(setup, measurement, name, n, args.threads) for _ in range(repeats)]
            print(f"  {name}, {measurement}: {peaks[0].seconds:.2f} s, {peaks[0].bytes / 2**20:.0f} MiB", flush=True)
            times = timing.Timing(tuple(peak.seconds for peak in peaks))
            rows.append(results.Row(measurement, times, least, peak=max(peak.bytes for peak in peaks)))
        best.confirm()
        tables.append(results.report(f"{name} of width {WIDTH}, n = {n}, {OUTPUTS} outputs, all layers", rows, best))
    script.save(args, best, tables=tables)


if __name__ == "__main__":
    main()
