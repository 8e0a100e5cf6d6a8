"""Writers for experiment trackers: what AlignmentTracker takes as `writer=`.

TensorBoard needs none: its SummaryWriter is one.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from ahkernels.optional_import import optional_import


class WandbWriter:
    """Logs scalars to a run of Weights & Biases, online or offline.

    W&B counts steps of its own, which only go up. The writer leaves them to the rest of the program: scalars join the
    row of the next `run.log`, and the step of training is a metric of its own, which is the x axis of their charts.

    Args:
        run: What `wandb.init` returns; by default the run of this process.
        step_metric: The name under which the step of training is logged.

    Raises:
        ImportError: If wandb is not installed.
        ValueError: If there is no run.

    Example:
        >>> from ahkernels.integrations.writers import WandbWriter
        >>> try:
        ...     writer = WandbWriter()  # after wandb.init(mode="offline")
        ... except (ImportError, ValueError) as error:
        ...     print("no run yet")
        no run yet
    """

    def __init__(self, run: Any = None, step_metric: str = "alignment/step") -> None:
        wandb = optional_import("wandb", "WandbWriter", 'pip install "ahkernels[wandb]"')
        self._run = wandb.run if run is None else run
        if self._run is None:
            raise ValueError("run: expected a run of W&B, found none; call wandb.init() first")
        self._step_metric = step_metric
        self._defined: set[str] = set()
        self._open: tuple[int, int] | None = None  # step of training, and row of the run, of scalars not yet committed

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Logs one value."""
        if tag not in self._defined:
            self._run.define_metric(tag, step_metric=self._step_metric)
            self._defined.add(tag)
        if self._open is not None and self._open[0] != step and self._open[1] == self._run.step:
            self._run.log({}, commit=True)  # or the row would lose the values of the step before
        self._run.log({tag: value, self._step_metric: step}, commit=False)
        self._open = step, self._run.step


class MLflowWriter:
    """Logs scalars as metrics of a run of MLflow.

    Names have the characters that MLflow allows, and "_" for any other; tags that would get the same name are numbered.

    Args:
        run_id: The id of the run; by default that of the active run.

    Raises:
        ImportError: If mlflow is not installed.
        ValueError: If there is no run.

    Example:
        >>> from ahkernels.integrations.writers import MLflowWriter
        >>> try:
        ...     writer = MLflowWriter()  # after mlflow.start_run()
        ... except (ImportError, ValueError) as error:
        ...     print("no run yet")
        no run yet
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._mlflow = optional_import("mlflow", "MLflowWriter", 'pip install "ahkernels[mlflow]"')
        active = self._mlflow.active_run()
        if run_id is None and active is None:
            raise ValueError(
                "run_id: expected that of a run of MLflow, found no active one; call mlflow.start_run() first"
            )
        self._run_id: str = run_id or active.info.run_id
        self._names: dict[str, str] = {}  # by tag

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Logs one value."""
        if tag not in self._names:
            self._names[tag] = _unused(_allowed(tag), set(self._names.values()))
        self._mlflow.log_metric(self._names[tag], value, step=step, run_id=self._run_id)


_LONGEST_NAME = 250  # of a metric, in MLflow


def _allowed(tag: str) -> str:
    """The nearest name that MLflow takes: of some characters only, and a path that is not that of another name."""
    name = re.sub(r"[^\w/.\- ]", "_", tag)
    parts = [part if part.strip(".") else "_" * max(1, len(part)) for part in name.split("/")]  # "", "." and ".."
    return posixpath.join(*parts)[:_LONGEST_NAME]


def _unused(name: str, used: set[str]) -> str:
    found, count = name, 1
    while found in used:
        count += 1
        ending = f"_{count}"
        found = name[: _LONGEST_NAME - len(ending)] + ending
    return found
