"""Networks and data that are measured by one process and by several, and what is measured of them."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import ahkernels as ah
from ahkernels.contraction import best_order

EVERYTHING = os.environ.get("AHKERNELS_ALL_SHARDS") == "1"
N, CLASSES = 23, 4
# Shares of the samples: with and without empty ones, and fewer than there are ranks.
SHARDS = {
    1: [[23]],
    2: [[12, 11], [23, 0]],
    3: [[8, 8, 7], [0, 1, 22]],
    4: [[6, 6, 6, 5], [0, 20, 0, 3]],
    **({8: [[3, 3, 3, 3, 3, 3, 3, 2], [0, 5, 0, 0, 9, 1, 8, 0]]} if EVERYTHING else {}),
}


class Words(nn.Module):
    """A small transformer over words, whose table gets different words in different shards."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6, padding_idx=0)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.table(words)).mean(1))


def model(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    made = {
        "mlp": lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, CLASSES)),
        "conv": lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.Flatten(),
            nn.Linear(36, CLASSES),
        ),
        "words": Words,
        "deep": lambda: nn.Sequential(*(nn.Linear(5, 5) for _ in range(12)), nn.Linear(5, CLASSES)),
        "wide": lambda: nn.Sequential(nn.Linear(5, 3000), nn.Linear(3000, CLASSES)),
        "outputs": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 12)),
        "orders": lambda: nn.Sequential(  # each layer has another order of contraction, with 200 samples
            nn.Conv1d(2, 4, 2), nn.Flatten(), nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 40, bias=False),
            nn.Linear(40, 40),
        ),
    }[name]()  # fmt: skip
    return made.to(dtype).eval()


def data(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    y = torch.randint(CLASSES, (N,))
    if name == "words":
        return torch.randint(40, (N, 5)), y
    x = torch.randn(N, 5, dtype=dtype) if name == "mlp" else torch.randn(N, 1, 5, 5, dtype=dtype)
    return x + 0.3, y


def shares(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return list(torch.split(tensor, list(counts)))


def in_order(order: str | None) -> contextlib.AbstractContextManager[Any]:
    """Has inner products taken in an order of contraction, whatever it costs."""
    if order is None:
        return contextlib.nullcontext()
    return mock.patch.object(best_order, "order_of", lambda *_, **__: order)


def reports(group: Any, name: str, dtype: torch.dtype, x: Tensor, y: Tensor, order: str | None, options: dict) -> dict:
    """All that a report has, by centering, statistic and layer; the kinds of layers are in the keys."""
    with in_order(order), warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)  # of the last layer's backward Gram
        found = ah.layerwise_alignment(model(name, dtype), x, y, process_group=group, **options)
    found = found if isinstance(found, dict) else {found.centering: found}
    return {
        f"{centering} {statistic} {layer}": float(value)
        for centering, report in found.items()
        for statistic, values in report.statistics.items()
        for layer, value in zip(report.layers, values, strict=True)
    } | {
        f"{centering} {report.n} {layer} {kind}": 1.0
        for centering, report in found.items()
        for layer, kind in zip(report.layers, report.kinds, strict=True)
    }


def statistics(
    group: Any, name: str, dtype: torch.dtype, x: Tensor, y: Tensor, outputs: Any, layers: Any = None
) -> dict[str, Tensor]:
    """Statistics of kernels; what begins with "rows" has a row for each row of the samples here."""
    network = model(name, dtype)
    kernels = ah.tangent_kernels(network, x, outputs=outputs, layers=layers, process_group=group, keep_factors=True)
    found: dict[str, Any] = {}
    for layer, kernel in kernels.items():
        torch.manual_seed(3)
        start = kernel.samples.held.start * kernel.o
        v = torch.randn(N * kernel.o, 3, dtype=torch.float64)[start : start + kernel.rows_here]
        row = f"rows {layer} {kernel.o}"
        found[f"{row} product"] = kernel @ v
        found[f"{row} of one"] = kernel @ v[:, 0]
        for centering in ("global", "per_output", None):
            found[f"{row} product {centering}"] = kernel.product(v, centering=centering)
            found[f"{layer} norm {centering}"] = kernel.frobenius_norm(centering=centering)
            found[f"{layer} eigenvalues {centering}"] = ah.eigenvalues(kernel, 3, centering=centering)
        found[f"{row} means"] = kernel.row_means().flatten()
        found[f"{layer} trace"] = kernel.trace()
        found[f"{layer} sum"] = kernel.sum()
        found[f"{layer} sum of blocks"] = float(kernel.sum_of_diagonal_blocks())
        found[f"{layer} vjp"] = kernel.vjp(v)
        found[f"{row} jvp"] = kernel.jvp(kernel.vjp(v))
        for centering in ("global", "per_output"):
            found[f"{layer} cka {centering}"] = ah.cka(kernel, y, centering=centering)
            found[f"{layer} rank {centering}"] = ah.stable_rank(kernel, centering=centering)
            found[f"{layer} correlation {centering}"] = ah.label_correlation(kernel, y, centering=centering)
            found[f"{layer} estimate {centering}"] = ah.estimate_cka(kernel, y, centering=centering, products=12).value
        found[f"{layer} debiased cka"] = ah.cka(kernel, y, centering="per_output", debiased=True)
        norm = ah.estimate_frobenius_norm(kernel, products=14, seed=4)
        found[f"{layer} estimated norm"] = [norm.value, norm.standard_error]
        fit = ah.kernel_regression(kernel, y, ridge=0.1 * kernel.trace() / kernel.shape[0], rank=4, tolerance=1e-13)
        found[f"rows {layer} 1 regression"] = fit.coefficients
        found[f"rows {layer} 1 predictions"] = fit.predict(kernel)
    found["similarity"] = ah.similarity(kernels)
    found["similarity per output"] = ah.similarity(kernels, centering="per_output")
    found["debiased similarity"] = ah.similarity(kernels, centering="per_output", debiased=True)
    whole = sum(kernels.values())
    found["whole"] = [whole.trace(), whole.frobenius_norm(), ah.cka(whole, y)]
    if outputs == "all":
        logits = network(x).detach()
        fishers = [ah.fisher_kernel(kernel, logits) for kernel in kernels.values()]
        found["fisher"] = [ah.stable_rank(fisher, centering=None) for fisher in fishers]
    return {key: torch.as_tensor(value, dtype=torch.float64) for key, value in found.items()}


def of_many(group: Any, dtype: torch.dtype, count: int) -> dict[str, float]:
    """A report of random samples: so many of them here, behind those of the ranks before."""
    import torch.distributed as dist

    counts = [count]
    if group is not None:
        counts = [0] * dist.get_world_size(group)
        dist.all_gather_object(counts, count, group=group)
    rank = 0 if group is None else dist.get_rank(group)
    torch.manual_seed(4)
    x, y = torch.randn(sum(counts), 5, dtype=dtype), torch.randint(CLASSES, (sum(counts),))
    begin = sum(counts[:rank])
    here = slice(begin, begin + count)
    return reports(group, "mlp", dtype, x[here], y[here], None, {"centering": ("global", "per_output")})


def near_constant(group: Any, n: int, spread: float) -> list[float]:
    """Centered norms of a kernel whose blocks are so close to constant; n is the number of samples here."""
    from ahkernels.distributed import Group, ShardedSamples

    counts = [n] if group is None else Group.of(group).exchange(n)
    begin = 0 if group is None else sum(counts[: group.rank()])
    generator = torch.Generator().manual_seed(5)

    def factor(*shape: int) -> Tensor:
        mean = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        made = mean + spread * torch.randn(sum(counts), *shape, generator=generator, dtype=torch.float64)
        return made.float()[begin : begin + n]

    samples = None if group is None else ShardedSamples(Group.of(group), counts)
    factors = ah.LayerFactors(factor(1, 30), factor(1, 4, 20), bias=True, unchecked=True)
    kernel = ah.TangentKernel(factors, precision="highest", samples=samples)
    return [kernel.frobenius_norm(centering="per_output"), kernel.frobenius_norm(centering="global")]


class Logged:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.tags.append(tag)


def tracked(group: Any, x: Tensor, y: Tensor, folder: Any, shard: str) -> dict[str, Any]:
    """A tracker of a model in training mode, with its files and its writer."""
    network = model("mlp", torch.float64).train()
    writer = Logged()
    tracker = ah.AlignmentTracker(network, x, y, process_group=group, shard=shard, writer=writer)
    for step in range(2):
        tracker.update(step, loss=1.0)
        with torch.no_grad():
            network[0].weight.mul_(0.9)
    path = folder / f"{group.rank()}.csv"
    tracker.save(path)
    return {"cka": tracker.cka, "steps": tracker.steps, "logged": len(writer.tags), "written": path.exists()}


def wide(group: Any, n: int) -> list[Tensor]:
    """Products, forms and norms of a layer that is wider than there are samples; n is the number of samples here."""
    from ahkernels.contraction.order import LayerShape
    from ahkernels.distributed import Group, ShardedSamples
    from ahkernels.distributed.samples import fewer_bytes_through_samples

    counts = [n] if group is None else Group.of(group).exchange(n)
    begin = 0 if group is None else sum(counts[: group.rank()])
    generator = torch.Generator().manual_seed(6)
    a, g, v = (
        torch.randn(sum(counts), *shape, generator=generator, dtype=torch.float64)[begin : begin + n]
        for shape in ((2, 70), (2, 3, 90), (3, 2))
    )
    samples = None if group is None else ShardedSamples(Group.of(group), counts)
    kernel = ah.TangentKernel(ah.LayerFactors(a, g, bias=True, unchecked=True), precision="highest", samples=samples)
    if samples is not None:
        assert fewer_bytes_through_samples(LayerShape(2, 70, 90, True), 8, 2, samples.n, len(counts))
    v = v.flatten(0, 1)
    numbers = torch.tensor([kernel.frobenius_norm(), kernel.sum(), *kernel.quadratic(v)], dtype=torch.float64)
    return [kernel @ v, numbers]


def traffic(group: Any, n: int, o: int, d: int, m: int) -> tuple[int, int, int]:
    """Bytes that a rank with n samples sends for the norm of a layer, by tiles, centered per output."""
    from ahkernels.distributed import Group, ShardedSamples
    from ahkernels.distributed.pairs import per_output
    from ahkernels.ops import KernelBatch

    found = Group.of(group)
    samples = ShardedSamples(found, found.exchange(n))
    before = dict(found.traffic)
    batch = KernelBatch([torch.randn(n, 1, d)], [torch.randn(n, 1, o, m)], [1.0], [False], [1])
    per_output(batch, "highest", samples, and_global=False)
    after = found.traffic
    return after["shift"] - before["shift"], after["sum"] - before["sum"], after["gather"] - before["gather"]


def explained(
    group: Any, name: str, x: Tensor, centerings: Sequence[Any], offset_bytes: int | None = None, **options: Any
) -> list[dict[str, Any]]:
    """What explanations for some centerings say, and what this rank sends for the norms of the layers."""
    from ahkernels import inner_products
    from ahkernels.distributed import Group

    network, ranks = model(name, torch.float64), Group.of(group)
    with mock.patch.object(inner_products, "OFFSET_BYTES", offset_bytes or inner_products.OFFSET_BYTES):
        kernels = ah.tangent_kernels(network, x, process_group=group)
        explanations = []
        for centering in centerings:
            found = ah.explain(network, x, centering=centering, process_group=group, **options)
            sent, norms = {}, {}
            for layer, one in kernels.items():
                new = ah.TangentKernel(one.factors, one.outputs, one.precision, layer, one.samples)  # without row means
                before, calls = sum(ranks.traffic.values()), ranks.collectives
                both = [centering] if isinstance(centering, str) else centering
                norms[layer] = [float(one) for one in inner_products.sharded_inner_products([new], both).found.values()]
                sent[layer] = sum(ranks.traffic.values()) - before, ranks.collectives - calls
            of_ranks = {"layers": list(found), "text": str(found), "shard": found.shard, "shards": found.shards}
            explanations.append({**of_ranks, "sent": sent, "norms": norms})
    return explanations


def chosen(group: Any, x: Tensor, y: Tensor, options: dict) -> tuple[Any, ...]:
    """What is shared out where that is to be chosen, that report, the reports of both choices, and kernels."""
    from ahkernels.distributed import cost

    network = model("deep", torch.float64)
    with mock.patch.object(cost, "_FLOPS", options.pop("rate", cost._FLOPS)), warnings.catch_warnings():
        warnings.simplefilter("ignore", ah.DegenerateKernelWarning)
        found = ah.explain(network, x, process_group=group, shard="auto")
        how = {"process_group": group, **options}
        by_choice = ah.layerwise_alignment(network, x, y, shard="auto", **how).cka
        by_samples = ah.layerwise_alignment(network, x, y, **how).cka
        by_layers = (
            ah.layerwise_alignment(network, x, y, shard="layers", **how).cka if "layers" in found.shards else None
        )
    kernels = ah.tangent_kernels(network, x, shard="auto", process_group=group)
    return found.shard, by_choice, by_samples, by_layers, len(kernels)


def dense(group: Any, x: Tensor) -> None:
    """What a kernel over several processes refuses."""
    ah.tangent_kernels(model("mlp", torch.float32), x, process_group=group)["0"].to_dense()
