"""Writers for experiment trackers: what AlignmentTracker takes as `writer=`.

TensorBoard needs none: its SummaryWriter is one.
"""

from __future__ import annotations

import re
from typing import Any

from ahkernels.optional_import import optional_import


class WandbWriter:
    """Logs scalars to a run of Weights & Biases, online or offline.

    W&B counts steps of its own, which only go up. The writer leaves them to the rest of the program: scalars join the
    row of the next `run.log`, and the step of training is a metric of its own, which is the x axis of their charts. A
    row that nobody else has logged is logged when the next one begins. A program that calls `run.log` with `step=`
    should therefore count steps of training in it, too.

    Args:
        run: What `wandb.init` returns; by default the run of this process.
        step_metric: The name under which the step of training is logged.

    Raises:
        ImportError: If wandb is not installed.
        ValueError: If there is no run.

    Example::

        with wandb.init(mode="offline") as run:
            tracker = ahkernels.AlignmentTracker(model, x, y, writer=WandbWriter(run))
    """

    def __init__(self, run: Any = None, step_metric: str = "alignment/step") -> None:
        wandb = optional_import("wandb", "WandbWriter", 'pip install "ahkernels[wandb]"')
        self._run = wandb.run if run is None else run
        if self._run is None:
            raise ValueError("run: expected a run of W&B, found none; call wandb.init() first")
        self._step_metric = step_metric
        self._defined: set[str] = set()
        self._step: int | None = None  # of training, of the last scalar
        self._row = -1  # of the run, that has it

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Logs one value."""
        if tag not in self._defined:
            self._run.define_metric(tag, step_metric=self._step_metric)
            self._defined.add(tag)
        if step != self._step:
            self._begin_row(step)
        self._run.log({tag: value, self._step_metric: step}, commit=False)

    def _begin_row(self, step: int) -> None:
        if self._step is not None and self._row == self._run.step:
            self._run.log({}, commit=True)  # or it would lose the values of the step before
        self._step, self._row = step, self._run.step


class MLflowWriter:
    """Logs scalars as metrics of a run of MLflow.

    Names have the characters that MLflow allows, and "_" for any other; tags that would get the same name are numbered.
    MLflow sends the metrics while training goes on. What goes wrong then is raised at the next step.

    Args:
        run_id: The id of the run; by default that of the active run.

    Raises:
        ImportError: If mlflow is not installed.
        ValueError: If there is no run.

    Example::

        with mlflow.start_run():
            tracker = ahkernels.AlignmentTracker(model, x, y, writer=MLflowWriter())
    """

    def __init__(self, run_id: str | None = None) -> None:
        mlflow = optional_import("mlflow", "MLflowWriter", 'pip install "ahkernels[mlflow]"')
        active = mlflow.active_run()
        if run_id is None and active is None:
            raise ValueError(
                "run_id: expected that of a run of MLflow, found no active one; call mlflow.start_run() first"
            )
        self._run_id: str = run_id or active.info.run_id
        self._client = mlflow.MlflowClient()
        self._names: dict[str, str] = {}  # by tag
        self._step: int | None = None  # of the last scalar
        self._sent: list[Any] = []  # what MLflow does with the scalars of this step

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Logs one value."""
        if step != self._step:
            self.flush()
            self._step = step
        if tag not in self._names:
            self._names[tag] = _unused(_allowed(tag), set(self._names.values()))
        # One at a time, a store in a database would take as long for the scalars as a measurement takes.
        self._sent.append(self._client.log_metric(self._run_id, self._names[tag], value, step=step, synchronous=False))

    def flush(self) -> None:
        """Waits until all that was logged is in the store, which is so at the end of the program in any case."""
        sent, self._sent = self._sent, []
        for operations in sent:
            operations.wait()


_LONGEST_NAME = 250  # of a metric of MLflow


def _allowed(tag: str) -> str:
    """The nearest name that MLflow takes: one of some characters, which is a path that is not that of another name."""
    name = re.sub(r"[^\w/.\- ]", "_", tag)[:_LONGEST_NAME]
    parts = [re.sub(r"^(\.+$|\.\.)", lambda dots: "_" * len(dots[0]), part) for part in name.split("/") if part]
    return "/".join(parts) or "_"


def _unused(name: str, used: set[str]) -> str:
    found, count = name, 1
    while found in used:
        count += 1
        ending = f"_{count}"
        found = name[: _LONGEST_NAME - len(ending)] + ending
    return found
