"""Alignment along a series of checkpoints, measured after the training."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ahkernels.capture import Inputs
from ahkernels.capture.guard import require_module
from ahkernels.centering import Centering, Centerings
from ahkernels.factors import NonFiniteError
from ahkernels.files.archive import require_checksums
from ahkernels.history import AlignmentHistory
from ahkernels.optional_import import optional_import
from ahkernels.tracker import AlignmentTracker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ahkernels.capture import CaptureKeywords

LoadCheckpoint: TypeAlias = Callable[[nn.Module, Path], object]

# Where the libraries that train put the model's own state within a checkpoint.
_KEYS = ("state_dict", "model_state_dict", "model")
# What stands before the step in the name of a file; the first of them that there is counts.
_LABELS = ("step", "iter(?:ation)?", "epoch")
_LONGEST_REASON = 200  # characters of what load_state_dict says


def measure_checkpoints(
    make_model: Callable[[], nn.Module],
    paths: Sequence[str | os.PathLike[str]],
    x: Inputs,
    y: Tensor,
    *,
    steps: Sequence[int] | None = None,
    load: LoadCheckpoint | None = None,
    history: str | os.PathLike[str] | None = None,
    centering: Centering | Centerings = "global",
    statistics: Sequence[str] = (),
    products: int | None = None,
    tolerance: float | None = None,
    **options: Unpack[CaptureKeywords],
) -> AlignmentHistory:
    """Measures the layerwise alignment of a model at each of its checkpoints.

    The model is made once and takes the weights of one checkpoint after the other, in the order of the steps. It is
    measured in eval mode. Each measurement is certified, unless `certify` says otherwise.

    Args:
        make_model: Makes the model; its weights do not matter.
        paths: The files of the checkpoints.
        x: See `layerwise_alignment`, as for all that are not listed here.
        y: The labels.
        steps: The step of each checkpoint. By default it is in the name of its file, after "step", "iteration" or
            "epoch", or as the only number.
        load: Puts the weights of a file into the model. By default they come from a safetensors file or from one of
            `torch.save` that `torch.load(weights_only=True)` reads: a state dict, or a dict that has one as
            "state_dict", "model_state_dict" or "model", whose checksums fit. What all names begin with, such as
            "module." or "net.", is left out where the model does not have it.
        history: A file (.json or .npz) that gets the history after each measurement. The measurements that it
            has already are kept, so that a call that was interrupted goes on where it was; the file in the end is the
            same.
        centering: One mean, or several.
        statistics: What to measure beside the alignment.
        products: The number of products that norms are estimated from.
        tolerance: The relative standard error that estimates have to reach.
        **options: See `CaptureOptions`. With `progress`, which is True here by default, there is a bar on stderr.

    Returns:
        One measurement for each checkpoint, by increasing step.

    Raises:
        ValueError: If steps are not clear, a file does not have the weights of the model, or `history` is that of
            other checkpoints, another model, samples, labels or options.
        FileNotFoundError: If a file does not exist, before anything is measured.
        TypeError: For an argument of another type.

    Example:
        >>> import torch, ahkernels as ah
        >>> def make_model():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> for step in (0, 100):
        ...     torch.save(make_model().state_dict(), f"step_{step}.pt")
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> history = ah.measure_checkpoints(make_model, ["step_0.pt", "step_100.pt"], x, y, progress=False)
        >>> history.steps, history.layers
        ([0, 100], ['0', '2'])
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths: expected a sequence of files, got {str(paths)!r}; write [{str(paths)!r}]")
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"make_model: expected a function that makes the model, got {type(make_model).__name__}; write lambda: it"
        )
    files = _by_step([Path(path) for path in paths], steps)
    shown = options.pop("progress", True)
    options.setdefault("certify", 1)
    model = make_model()
    require_module(model)
    tracker = AlignmentTracker(
        *(model, x, y),
        centering=centering,
        statistics=statistics,
        products=products,
        tolerance=tolerance,
        **options,
    )
    if history is not None and Path(history).suffix == ".csv":
        raise ValueError(f"history: expected .json or .npz, which have all settings in them, got {str(history)!r}")
    if history is not None and Path(history).exists():
        tracker.load(history)
        _require_beginning(tracker.history, files, history)
    done = len(tracker)
    with tqdm(total=len(files), initial=done, desc="checkpoints", unit="checkpoint", disable=not shown) as bar:
        for step, path in list(files.items())[done:]:
            if (load or load_weights)(model, path) is not None:
                raise TypeError(
                    "load: expected a function that puts the weights of a file into the model and returns nothing, got "
                    "one that returns something; write lambda model, path: load_weights(model, path) and return None"
                )
            try:
                tracker.update(step)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}, with the weights of {str(path)!r}; leave it out of paths") from error
            if history is not None:
                tracker.history.settings[_setting(step)] = _digest(path)
                tracker.save(history)
            bar.update()
    return tracker.history


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts the weights of a checkpoint into a model; see `measure_checkpoints`.

    Raises:
        ValueError: If the file has no state dict, or one that does not fit the model; the message names the file.
    """
    state = _state_dict(path)
    names = set(model.state_dict())
    while not names & set(state) and len({name.partition(".")[0] for name in state}) == 1 and "." in next(iter(state)):
        state = {name.partition(".")[2]: value for name, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        reason = reasons[0][:_LONGEST_REASON] if reasons else str(error)
        raise ValueError(
            f"paths: expected the weights of the model, a {type(model).__name__}, got {str(path)!r}: {reason}"
        ) from error


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    expected = "paths: expected a checkpoint with a state dict"
    try:
        if path.suffix == ".safetensors":
            found = optional_import(
                "safetensors.torch", "a checkpoint in safetensors", "pip install safetensors"
            ).load_file(path)
        else:
            require_checksums(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes of the readers
        reason = f"{type(error).__name__} {error}".partition("\n")[0]
        raise ValueError(f"{expected}, got {str(path)!r}, which cannot be read ({reason})") from error
    for one in (found, *(found[key] for key in _KEYS if isinstance(found, Mapping) and key in found)):
        if isinstance(one, Mapping) and one and all(map(_is_entry, one.items())):
            return one
    keys = list(found) if isinstance(found, Mapping) else type(found).__name__
    raise ValueError(f"{expected}, alone or as one of {', '.join(_KEYS)}, got {str(path)!r} with {keys}")


def _is_entry(entry: tuple[object, object]) -> bool:
    name, value = entry
    return isinstance(name, str) and isinstance(value, Tensor)


def _by_step(paths: Sequence[Path], steps: Sequence[int] | None) -> dict[int, Path]:
    """The files by increasing step."""
    if not paths:
        raise ValueError("paths: expected at least one checkpoint, got none")
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"paths: expected files, got {str(path)!r}, which {what}")
    if steps is None:
        steps = [_step_in_name(path) for path in paths]
    if len(steps) != len(paths):
        raise ValueError(f"steps: expected one for each of the {len(paths)} checkpoints, got {len(steps)}")
    found: dict[int, Path] = {}
    for step, path in sorted(zip(map(int, steps), paths, strict=True)):
        if step in found:
            raise ValueError(
                f"steps: expected each once, got {step} for {str(found[step])!r} and {str(path)!r}; pass steps="
            )
        found[step] = path
    return found


def _step_in_name(path: Path) -> int:
    number = r"\d+[a-z0-9]*(?:\.\d+)?"
    labelled = (re.findall(rf"{label}[=_-]?({number})", path.stem, re.IGNORECASE) for label in _LABELS)
    found = next(filter(None, labelled), None) or re.findall(number, path.stem, re.IGNORECASE)
    if len(found) != 1 or not found[0].isdecimal():
        raise ValueError(
            "paths: expected a step as a whole number in the name of each file, after step, iteration or epoch or "
            f"alone, got {str(path)!r}; pass steps="
        )
    return int(found[0])


def _require_beginning(history: AlignmentHistory, files: Mapping[int, Path], path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a history has other steps or other checkpoints than the first of these."""
    wanted = list(files)[: len(history)]
    if history.steps != wanted:
        raise ValueError(
            f"history: expected the steps {wanted} of these checkpoints, got {history.steps} in {str(path)!r}; name "
            "another file"
        )
    for step in wanted:
        if history.settings.get(_setting(step)) != _digest(files[step]):
            raise ValueError(
                f"history: expected measurements of these checkpoints, got those of another file for step {step} than "
                f"{str(files[step])!r} is now in {str(path)!r}; name another file"
            )


def _setting(step: int) -> str:
    """The name of the setting of a history that has the digest of a checkpoint."""
    return f"checkpoint {step}"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()[:16]
