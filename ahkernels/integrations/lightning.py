"""A callback for Lightning, of the package lightning or, where only that is installed, pytorch_lightning."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ahkernels.capture import Inputs
from ahkernels.integrations.tracked_run import TrackedRun
from ahkernels.optional_import import optional_import
from ahkernels.tracker import AlignmentTracker

_older = importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is not None
_pl: Any = optional_import(
    "pytorch_lightning" if _older else "lightning.pytorch",
    "ahkernels.integrations.lightning",
    'pip install "ahkernels[lightning]"',
)


class AlignmentCallback(_pl.Callback):  # type: ignore[misc]
    """Measures the layers of a LightningModule as it trains.

    It measures after optimiser steps (`trainer.global_step`), before the first one if that is in the schedule, and
    never in validation. Each measurement goes to the loggers of the trainer, under "{tag}/{layer}". The history is in
    the checkpoints of the trainer: `trainer.fit(..., ckpt_path=...)` goes on with it. Training goes on exactly as it
    would have without the callback.

    Args:
        x: What the module's forward takes for n probe samples; see `AlignmentTracker`. It may be on any device.
        y: Class indices [n], or targets [n, o].
        every: Optimiser steps from one measurement to the next; the first is at step 0.
        steps: Optimiser steps to measure at, instead of `every`, such as `measurement_grid(total, count)`.
        module: The name of the part of the LightningModule that is measured, such as "net"; "" for all of it.
        metrics: Names of what the module logs (`self.log`), to be kept beside the alignments. The loss that
            `training_step` returns is kept as "loss" in any case: its mean over the batches of the optimiser step, and
            over all devices.
        **options: Those of `AlignmentTracker`. A `writer` gets what the loggers get, and the metrics. `process_group`
            may be "world", for all processes of the trainer; x and y are then as the tracker says. Without it, each
            process measures the same, and rank 0 writes.

    Raises:
        TypeError: If an argument has another type, or an option is unknown.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from ahkernels.integrations.lightning import AlignmentCallback
        >>> x, y = torch.randn(40, 20), torch.arange(40) % 4
        >>> callback = AlignmentCallback(x, y, every=100, centering="per_output")
        >>> callback.tracker.steps  # after trainer = Trainer(callbacks=[callback]); trainer.fit(...): [0, 100, ...]
        []
    """

    def __init__(
        self,
        x: Inputs,
        y: Tensor,
        *,
        every: int | None = None,
        steps: Sequence[int] | None = None,
        module: str = "",
        metrics: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self._run = TrackedRun(x, y, every, steps, module, metrics, options)
        self._key = {"module": module, "tag": self.tracker.tag}
        self._step = -1  # the last that was seen
        self._losses: list[Tensor] = []  # of the batches since then

    @property
    def tracker(self) -> AlignmentTracker:
        """The tracker, with the history."""
        return self._run.tracker

    @property
    def state_key(self) -> str:
        """What the history is called in a checkpoint; callbacks with another `module` or `tag` have another."""
        key: str = self._generate_state_key(**self._key)
        return key

    def state_dict(self) -> dict[str, Any]:
        """The history, for a checkpoint."""
        return self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the history of a checkpoint."""
        self.tracker.load_state_dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measures before the first optimiser step of the run, if that is due.

        Raises:
            ValueError: If the LightningModule has no part `module`.
        """
        self._run.begin(pl_module, trainer.global_step, writes=trainer.is_global_zero)
        self._step = trainer.global_step
        self._losses = []
        self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measures after a batch that ends an optimiser step, if that is due."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if trainer.global_step == self._step:  # gradients are still accumulated
            return
        self._step = trainer.global_step
        self._measure(trainer, pl_module)
        self._losses = []

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        if not self._run.is_due(trainer.global_step):
            return
        logged = trainer.callback_metrics if self._run.metrics else {}  # which Lightning computes when it is asked
        metrics = {name: logged[name] for name in self._run.metrics if name in logged}
        if self._losses:
            # Lightning divides the loss of a batch by the number of batches that it accumulates.
            batches = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            metrics["loss"] = trainer.strategy.reduce(torch.stack(self._losses).mean() * batches)
        row = self._run.measure(trainer.global_step, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
