"""Every call that the benchmarks make into ahkernels, so that a change of its interface touches one file."""

from collections.abc import Iterator
from unittest import mock

import torch

try:
    import ahkernels as ah
    from ahkernels.capture import run
    from ahkernels.factors import LayerFactors
    from ahkernels.ops import KernelBatch
except ImportError as reason:
    raise ImportError(
        "the benchmarks need ahkernels installed (pip install -e . in the repository root), "
        "or --without-ours for the baselines alone"
    ) from reason


def alignment(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> float:
    """Kernel-label alignment from factors a [n, N] and g [n, o, N], the whole public call."""
    return ah.cka(kernel(a, g), y)


def centered_square(a: torch.Tensor, g: torch.Tensor, row_means: torch.Tensor) -> float:
    """||C K C||_F^2 by the fused pass alone; row_means [n, o] in fp64."""
    batch = KernelBatch([a[:, None]], [g[:, None]], [0.0], [False], [1])
    return float(ah.ops.centered_inner_products(batch, [row_means], "highest"))


def layerwise(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, products: int | None = None) -> torch.Tensor:
    """Alignment of every layer, fp64 [L]; estimated from so many products with each kernel where that is given."""
    return ah.layerwise_alignment(model, x, y, precision="highest", products=products).cka


def layerwise_reports(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **options: object) -> object:
    """What is measured of every layer with options of `layerwise_alignment`."""
    return ah.layerwise_alignment(model, x, y, **options)


def spectra(model: torch.nn.Module, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The largest eigenvalues of every layer's kernel."""
    return [ah.eigenvalues(kernel, count) for _, kernel in ah.iter_tangent_kernels(model, x)]


def layerwise_within(
    budget: int, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **options: object
) -> torch.Tensor:
    """Alignment of the layers, fp64 [L], within a memory budget in bytes; options of `layerwise_alignment`."""
    return ah.layerwise_alignment(model, x, y, memory_budget=budget, **options).cka


def layerwise_certified(certify: int, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Alignment of every layer, fp64 [L], held against autograd in every so many calls."""
    return ah.layerwise_alignment(model, x, y, precision="highest", certify=certify).cka


def fault_is_found(model: torch.nn.Module, x: torch.Tensor, layer: str, samples: slice, e: float) -> bool:
    """Whether a certificate finds that the gradients of some samples at a layer were multiplied by 1 + e."""
    right = run.factors_of

    def faulty(call: object, planned: object, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        a, g = right(call, planned, *rest)
        if planned.name == layer:
            g = g.clone()
            g[:, samples] *= 1 + e
        return a, g

    with mock.patch.object(run, "factors_of", faulty):
        found = ah.tangent_kernels(model, x, layers=[layer], keep_factors=True, certify=1)
    return not found[layer].factored  # its Jacobian, from autograd


def largest_layer(budget: int, model: torch.nn.Module, x: torch.Tensor, layers: object = None) -> tuple[str, str, int]:
    """The layer of which most is kept within a budget: its name, its route, and the bytes."""
    largest = max(ah.explain(model, x, layers=layers, memory_budget=budget), key=lambda one: one.bytes)
    return largest.layer, largest.route, largest.bytes


def layerwise_by_centering(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, dict[str, float]]:
    """Alignment of every layer by its name, for both centerings."""
    reports = ah.layerwise_alignment(model, x, y, precision="highest", centering=("per_output", "global"))
    return {centering: dict(report) for centering, report in reports.items()}


def layerwise_by_name(model: torch.nn.Module, x: object, y: torch.Tensor, **options: object) -> dict[str, float]:
    """Alignment of every layer by its name, in forward order; options of `layerwise_alignment`."""
    return dict(ah.layerwise_alignment(model, x, y, precision="highest", **options))


def explained(model: torch.nn.Module, x: object, **options: object) -> "list[ah.LayerExplanation]":
    """How every layer would be measured, in forward order."""
    return ah.explain(model, x, **options)


def dense_kernels(
    model: torch.nn.Module, x: object, layers: object = None, **options: object
) -> Iterator[torch.Tensor]:
    """K [n*o, n*o] of each of these layers, or groups of layers, in forward order; default: all."""
    for _, kernel in ah.iter_tangent_kernels(model, x, layers=layers, precision="highest", **options):
        yield kernel.to_dense(max_bytes=1 << 40)


def dense_kernels_at(out: torch.Tensor, model: torch.nn.Module, x: object) -> torch.Tensor:
    """K of every layer in forward order, written to out [L, n*o, n*o]."""
    for to, (_, kernel) in zip(out, ah.iter_tangent_kernels(model, x, precision="highest"), strict=True):
        kernel.to_dense(out=to)
    return out


def largest_eigenvalue(model: torch.nn.Module, x: torch.Tensor, layer: str, tolerance: float) -> torch.Tensor:
    """The largest eigenvalue of one layer's K, not centered, fp64 [1]."""
    kernel = ah.tangent_kernels(model, x, layers=[layer], precision="highest")[layer]
    return ah.eigenvalues(kernel, 1, centering=None, tolerance=tolerance)


def eigenpairs(a: torch.Tensor, g: torch.Tensor, k: int) -> "ah.Eigenpairs":
    """The k largest eigenvalues of C K C from products with the factors."""
    return ah.eigenpairs(kernel(a, g), k)


def dense_eigenvalues(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """All eigenvalues of C K C from K in memory, largest first."""
    dense = kernel(a.double(), g.double()).to_dense(max_bytes=1 << 40)
    means = dense.mean(0)
    dense.sub_(means).sub_((means - means.mean())[:, None])
    return torch.linalg.eigvalsh(dense).flip(0)


def norm(a: torch.Tensor, g: torch.Tensor) -> float:
    """||C K C||_F, exactly."""
    return kernel(a, g).frobenius_norm()


def estimated_norm(a: torch.Tensor, g: torch.Tensor, products: int, seed: int) -> "ah.Estimate":
    """||C K C||_F from so many products."""
    return ah.estimate_frobenius_norm(kernel(a, g), products=products, seed=seed)


def norm_within(a: torch.Tensor, g: torch.Tensor, tolerance: float, seed: int) -> "ah.Estimate":
    """||C K C||_F with a relative standard error of at most a tolerance."""
    return ah.estimate_frobenius_norm(kernel(a, g), tolerance=tolerance, seed=seed)


def similarity(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Alignment of every kernel with every other, [L, L]."""
    return ah.similarity([kernel(a, g) for a, g in factors])


def factors_of(model: torch.nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """a [n, N] and g [n, o, N'] of every dense layer."""
    layers = [one.factors[0] for one in ah.tangent_kernels(model, x).values()]
    return [(layer.forward[:, 0], layer.backward[:, 0]) for layer in layers]


def kernel(a: torch.Tensor, g: torch.Tensor) -> "ah.TangentKernel":
    """The tangent kernel of one dense layer without a bias."""
    return ah.TangentKernel(LayerFactors(forward=a[:, None], backward=g[:, None], bias=False), precision="highest")


def layer_names(model: torch.nn.Module, x: torch.Tensor) -> list[str]:
    """Layers in the order of `layerwise`."""
    return [one.layer for one in ah.explain(model, x)]


def route_flops(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Flops of all layers, passes through the network apart, each by the route that is taken."""
    return float(sum(one.flops for one in ah.explain(model, x)))


def certified_report(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> ah.AlignmentReport:
    """The report of all layers, held against autograd."""
    return ah.layerwise_alignment(model, x, y, certify=1)
