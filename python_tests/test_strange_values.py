"""Values of strange types for every argument of the public functions: a sentence that says what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import ahkernels as ah

STRANGE = ["a", None, -1, float("nan"), [], {}, object(), b"x", ("a", 1), nn.ReLU(), torch.zeros(2, 2).to_sparse()]
NO_ERROR = object()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def functions() -> dict[str, tuple[Callable[..., object], dict[str, Any]]]:
    """Public functions and methods, with right arguments."""
    model, x, y = network(), torch.randn(6, 4), torch.arange(6) % 3
    kernels = ah.tangent_kernels(model, x)
    kernel = kernels["0"]
    capture = {"layers": None, "outputs": "all", "memory_budget": 1 << 30, "certify": 32, "precision": None}
    measured = {"centering": "global", "statistics": (), "products": None, "tolerance": None}
    spectral = {"kernel": kernel, "centering": "global", "seed": 0}
    factors = {"forward": torch.randn(3, 1, 4), "backward": torch.randn(3, 1, 2, 5), "bias": True}
    return {
        "cka": (ah.cka, {"kernel": kernel, "other": y, "centering": "global"}),
        "similarity": (ah.similarity, {"kernels": kernels, "others": None, "centering": "global"}),
        "eigenpairs": (ah.eigenpairs, spectral | {"k": 3, "tolerance": 1e-8}),
        "stable_rank": (ah.stable_rank, {"kernel": kernel, "centering": "global"}),
        "label_correlation": (ah.label_correlation, {"kernel": kernel, "y": y, "centering": "global"}),
        "estimate_cka": (ah.estimate_cka, spectral | {"y": y, "products": 12, "tolerance": None}),
        "kernel_regression": (ah.kernel_regression, {"kernel": kernel, "y": y, "ridge": 1e-3, "tolerance": 1e-6}),
        "fisher_kernel": (ah.fisher_kernel, {"kernel": kernel, "logits": torch.randn(6, 3)}),
        "tangent_kernels": (ah.tangent_kernels, {"model": model, "x": x, **capture}),
        "explain": (ah.explain, {"model": model, "x": x, "centering": "global", **capture}),
        "layerwise_alignment": (ah.layerwise_alignment, {"model": model, "x": x, "y": y, **measured, **capture}),
        "AlignmentTracker": (ah.AlignmentTracker, {"model": model, "x": x, "y": y, "writer": None, **measured}),
        "AlignmentHistory": (ah.AlignmentHistory, {"settings": None}),
        "AlignmentHistory.append": (ah.AlignmentHistory().append, {"measurement": NO_ERROR}),
        "measurement_grid": (ah.measurement_grid, {"total": 10, "count": 3}),
        "first_samples": (ah.first_samples, {"data": torch.utils.data.TensorDataset(x, y), "count": 3}),
        "CrossKernel": (ah.CrossKernel, {"rows": kernel, "columns": kernel}),
        "TangentKernel": (ah.TangentKernel, {"factors": kernel.factors, "outputs": None, "precision": None}),
        "LayerFactors": (ah.LayerFactors, factors),
        "subset": (kernel.subset, {"samples": torch.tensor([1, 2])}),
        "product": (kernel.product, {"v": torch.randn(18, 2), "centering": "global"}),
        "to_dense": (kernel.to_dense, {"out": None}),
    }


def pictures() -> dict[str, tuple[Callable[..., object], dict[str, Any]]]:
    """Likewise, of those that need matplotlib."""
    return {
        "plot_similarity": (ah.plot_similarity, {"matrix": torch.eye(2), "layers": ["a", "b"], "ax": None}),
        "plot_spectrum": (ah.plot_spectrum, {"eigenvalues": torch.ones(3), "ax": None}),
    }


def refusals(function: Callable[..., object], right: dict[str, Any], argument: str) -> Iterator[Exception]:
    """What the function raises for strange values of an argument; some are right for some."""
    for value in STRANGE:
        try:
            function(**{**right, argument: value})
        except Exception as error:
            yield error


def arguments(of: dict[str, tuple[Callable[..., object], dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(name, argument) for name, (_, right) in of.items() for argument in right]


def require_sentences(found: Sequence[Exception]) -> None:
    for error in found:
        assert isinstance(error, (TypeError, ValueError)), repr(error)
        assert "expected" in str(error), repr(error)


@pytest.mark.parametrize(("name", "argument"), arguments(functions()))
@pytest.mark.filterwarnings("ignore")
def test_strange_values_are_refused_in_a_sentence(name: str, argument: str) -> None:
    function, right = functions()[name]
    found = list(refusals(function, right, argument))
    assert found or argument == "bias"  # any value is true or not
    require_sentences(found)


@pytest.mark.parametrize(("name", "argument"), arguments(pictures()))
def test_pictures_of_strange_values_are_refused_in_a_sentence(name: str, argument: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    function, right = pictures()[name]
    found = list(refusals(function, right, argument))
    pyplot.close("all")
    assert found
    require_sentences(found)
