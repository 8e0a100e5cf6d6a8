"""What a history was measured with: samples, labels and options, so that it is not joined with another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ahkernels.capture import Inputs
from ahkernels.capture.batch import Batch
from ahkernels.capture.wrappers import without_wrappers
from ahkernels.files.digest import bits_of
from ahkernels.layerwise import AlignmentOptions
from ahkernels.outputs import plain_outputs
from ahkernels.precision import resolve_precision
from ahkernels.report import AlignmentReport

_MAY_LACK = ("model", "x", "y")  # before a model is there; with a process group


def settings_of(x: Inputs, y: Tensor, options: AlignmentOptions) -> dict[str, str]:
    """What numbers depend on, as text by the name of the argument.

    Samples and labels are left out with a process group, as each of its processes has others.

    Args:
        x: The samples.
        y: The labels.
        options: What is measured.
    """
    capture = options.capture
    output = capture.output
    found = {
        "layers": str(capture.layers),
        "outputs": str(plain_outputs(capture.outputs)),
        "output": str(None if output is None else getattr(output, "__qualname__", type(output).__qualname__)),
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
    """What a model is made of, as text.

    It is the type of the model, and a digest of the names and types of its modules and of the names, shapes and dtypes
    of its parameters.
    """
    model = without_wrappers(model)
    modules = [f"{name} {type(one).__qualname__}" for name, one in model.named_modules()]
    parameters = [f"{name} {list(one.shape)} {one.dtype}" for name, one in model.named_parameters()]
    digest = hashlib.sha256("\n".join([*modules, *parameters]).encode()).hexdigest()
    return f"{type(model).__name__} with {len(parameters)} parameters (sha256 {digest[:16]})"


def require_settings(found: Mapping[str, str], wanted: Mapping[str, str], argument: str) -> None:
    """Raises ValueError naming the first setting that a history has otherwise than a measurement to come.

    A history without any settings is taken as it is. One with some has all but those of `_MAY_LACK`.
    """
    for name, value in wanted.items():
        if not found or (name in _MAY_LACK and name not in found) or found.get(name) == value:
            continue
        got = f"{name} = {found[name]}" if name in found else f"nothing said of {name}"
        raise ValueError(
            f"{argument}: expected a history measured with {name} = {value}, as from now on, got one with {got}"
        )


def require_options(report: AlignmentReport, options: AlignmentOptions, argument: str) -> None:
    """Raises ValueError naming the first option of a history's report that a measurement to come has otherwise."""
    capture = options.capture
    wanted = {"outputs": plain_outputs(capture.outputs), "precision": resolve_precision(capture.precision)}
    for name, value in wanted.items():
        if getattr(report, name) != value:
            raise ValueError(
                f"{argument}: expected a history with {name} = {value}, as from now on, got one with {name} = "
                f"{getattr(report, name)}"
            )


def _told(tensors: Sequence[Tensor], constants: str = "") -> str:
    """Shapes and dtypes of tensors, and a digest of their bits and of what goes with them."""
    digest = hashlib.sha256(constants.encode())
    for one in tensors:
        digest.update(bits_of(one))
    shapes = ", ".join(f"{list(one.shape)} in {str(one.dtype).removeprefix('torch.')}" for one in tensors)
    return f"{shapes} (sha256 {digest.hexdigest()[:16]})"
