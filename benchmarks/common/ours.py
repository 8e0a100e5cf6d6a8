"""Every call that the benchmarks make into ahkernels, so that a change of its interface touches one file."""

import torch

try:
    import ahkernels as ah
    from ahkernels.factors import Factors
except ImportError as reason:
    raise ImportError(
        "the benchmarks need ahkernels installed (pip install . in the repository root), "
        "or --without-ours for the baselines alone"
    ) from reason


def alignment(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> float:
    """Kernel-label alignment from factors a [n, N] and g [n, o, N], the whole public call."""
    factors = Factors(forward=a[:, None], backward=g[:, None], bias=False)
    return ah.cka(ah.TangentKernel(factors, precision="highest"), y)


def centered_square(a: torch.Tensor, g: torch.Tensor, row_means: torch.Tensor) -> float:
    """||C K C||_F^2 by the fused pass alone; row_means [n, o] in fp64."""
    return float(torch.ops.ahkernels.centered_moments([a[:, None]], [g[:, None]], [0.0], [row_means], "highest"))


def layerwise(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Alignment of every layer, fp64 [L]."""
    return ah.layerwise_alignment(model, x, y, precision="highest").cka


def layer_names(model: torch.nn.Module, x: torch.Tensor) -> list[str]:
    """Layers in the order of `layerwise`."""
    return [one.layer for one in ah.explain(model, x)]
