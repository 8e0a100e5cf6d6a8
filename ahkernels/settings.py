"""What a history was measured with: samples, labels and options, so that it is not joined with another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ahkernels.capture import Inputs
from ahkernels.capture.batch import Batch
from ahkernels.capture.wrappers import without_wrappers
from ahkernels.layerwise import AlignmentOptions
from ahkernels.precision import resolve_precision


def settings_of(x: Inputs, y: Tensor, options: AlignmentOptions) -> dict[str, str]:
    """What numbers depend on, as text by the name of the argument.

    Samples and labels are left out with a process group, as each of its processes has others.

    Args:
        x: The samples.
        y: The labels.
        options: What is measured.
    """
    capture = options.capture
    found = {
        "layers": str(capture.layers),
        "outputs": str(capture.outputs),
        "precision": resolve_precision(capture.precision),
        "centering": ", ".join(options.centerings),
        "statistics": ", ".join(options.statistics),
        "products": str(options.products),
        "tolerance": str(options.tolerance),
    }
    if capture.process_group is None:
        batch = Batch(x)
        found |= {"x": _told(batch.tensors, batch.constants), "y": _told([y])}
    return found


def structure_of(model: nn.Module) -> str:
    """What a model is made of, as text: its type, and a digest of the names, shapes and dtypes of its parameters."""
    model = without_wrappers(model)
    parameters = [f"{name} {list(one.shape)} {one.dtype}" for name, one in model.named_parameters()]
    digest = hashlib.sha256("\n".join(parameters).encode()).hexdigest()
    return f"{type(model).__name__} with {len(parameters)} parameters (sha256 {digest[:16]})"


def require_settings(found: Mapping[str, str], wanted: Mapping[str, str], argument: str) -> None:
    """Raises ValueError naming the first setting that a history has otherwise than a measurement to come."""
    for name, value in wanted.items():
        if name in found and found[name] != value:
            raise ValueError(
                f"{argument}: expected a history measured with {name} = {value}, as from now on, got one with "
                f"{name} = {found[name]}"
            )


def _told(tensors: Sequence[Tensor], constants: str = "") -> str:
    """Shapes and dtypes of tensors, and a digest of their bits and of what goes with them."""
    digest = hashlib.sha256(constants.encode())
    for one in tensors:
        digest.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    shapes = ", ".join(f"{list(one.shape)} in {str(one.dtype).removeprefix('torch.')}" for one in tensors)
    return f"{shapes} (sha256 {digest.hexdigest()[:16]})"
