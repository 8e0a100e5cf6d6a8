"""A callback for the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ahkernels.capture import Inputs
from ahkernels.integrations.tracked_run import TrackedRun
from ahkernels.optional_import import optional_import
from ahkernels.tracker import AlignmentTracker

_transformers: Any = optional_import(
    "transformers", "ahkernels.integrations.transformers", 'pip install "ahkernels[transformers]"'
)


class AlignmentCallback(_transformers.TrainerCallback):  # type: ignore[misc]
    """Measures the layers of a model as the Trainer of transformers trains it.

    It measures after optimiser steps (`state.global_step`), and before the first one if that is in the schedule. The
    history is in the state of the Trainer, and so in its checkpoints: `trainer.train(resume_from_checkpoint=...)` goes
    on with it. Training goes on exactly as it would have without the callback.

    Args:
        x: What the model takes for n probe samples, such as a tokenised batch; see `AlignmentTracker`. It may be on any
            device.
        y: Class indices [n], or targets [n, o].
        every: Optimiser steps from one measurement to the next; the first is at step 0.
        steps: Optimiser steps to measure at, instead of `every`, such as `measurement_grid(total, count)`.
        module: The name of the part of the model that is measured; "" for all of it.
        metrics: Names of what the Trainer logs, to be kept beside the alignments of the step at which it logs them.
        log: What logs a dict {tag: value}: `trainer.log`, with which each measurement goes to all that the Trainer
            reports to, under "{tag}/{layer}".
        **options: Those of `AlignmentTracker`. A `writer` gets the alignments. `process_group` may be "world", for all
            processes of the Trainer; x and y are then as the tracker says. Without it, each process measures the same,
            and rank 0 writes.

    Raises:
        TypeError: If an argument has another type, or an option is unknown.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from ahkernels.integrations.transformers import AlignmentCallback
        >>> batch = {"input_ids": torch.randint(50, (40, 6)), "attention_mask": torch.ones(40, 6, dtype=torch.long)}
        >>> callback = AlignmentCallback(batch, torch.arange(40) % 4, every=100)
        >>> callback.tracker.steps  # after trainer = Trainer(..., callbacks=[callback]); trainer.train(): [0, 100, ...]
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
        metrics: Sequence[str] = ("loss",),
        log: Callable[[dict[str, float]], object] | None = None,
        **options: Any,
    ) -> None:
        if log is not None and not callable(log):
            raise TypeError(f"log: expected a function of a dict, such as trainer.log, got {type(log).__name__}")
        self._run = TrackedRun(x, y, every, steps, module, metrics, options)
        self._log = log
        self._key = f"{type(self).__name__}(module={module!r}, tag={self.tracker.tag!r})"

    @property
    def tracker(self) -> AlignmentTracker:
        """The tracker, with the history."""
        return self._run.tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Takes over the history of a checkpoint, and measures if that is due.

        Raises:
            ValueError: If the model has no part `module`, or another callback has the same `module` and `tag`.
        """
        # An attribute that is no field, so that it is not in the checkpoint.
        others: dict[str, AlignmentCallback] = vars(state).setdefault("alignment_callbacks", {})
        if others.setdefault(self._key, self) is not self:
            raise ValueError(
                f"tag: expected another one for each callback of a Trainer, got {self.tracker.tag!r} twice; write "
                "tag='second', say"
            )
        saved = state.stateful_callbacks.get(self._key)
        if saved is not None:
            self.tracker.load_state_dict(saved["history"])
        self._run.begin(model, state.global_step, writes=state.is_world_process_zero)
        self._measure(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures after an optimiser step, if that is due."""
        self._measure(state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Keeps what the Trainer logs at the step of the last measurement, which comes after it."""
        history = self.tracker.history
        if logs and history and history[-1].step == state.global_step:
            found = {name: float(logs[name]) for name in self._run.metrics if name in logs}
            if found:
                history[-1].metrics.update(found)
                self._keep(state)

    def _measure(self, state: Any, control: Any) -> None:
        if not self._run.is_due(state.global_step):
            return
        row = self._run.measure(state.global_step, {})
        self._keep(state)
        if self._log is not None:
            should_log = control.should_log
            self._log(row)
            control.should_log = should_log  # or the Trainer would take it that its own log of this step is done

    def _keep(self, state: Any) -> None:
        # Not as an ExportableState: of one, the Trainer would make a new callback from what is in the checkpoint, where
        # x and y are not.
        state.stateful_callbacks[self._key] = {"history": self.tracker.state_dict()}
