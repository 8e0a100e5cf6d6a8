"""Signals while a study runs (experiments/common/running.py)."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.running import Stop, run, say
from experiments.common.store import RunStore, StoreError
from experiments.common.training import Recipe, Trainer


class Interrupted(io.StringIO):
    """A stream that a signal reaches while it is written to, and that, like stderr, takes one write at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.busy, self.signals = False, 1

    def write(self, text: str) -> int:
        if self.busy:
            raise RuntimeError("reentrant call")
        self.busy = True
        if self.signals:
            self.signals -= 1
            signal.raise_signal(signal.SIGINT)
        self.busy = False
        return super().write(text)


def test_a_signal_may_come_while_a_line_is_written(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = Interrupted()
    monkeypatch.setattr(sys, "stderr", stream)
    with Stop() as stop:
        say("iteration 1")
    assert stop.signal == signal.SIGINT
    assert stream.getvalue() == "iteration 1\n"
    assert "stopping after this iteration" in capfd.readouterr().err


@pytest.mark.parametrize("change", [{"model": {}}, {"optimizer": 3}, {"iteration": None, "averaged_loss": None}, {}])
def test_the_state_of_another_training_is_one_sentence(change: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(torch.nn.Linear(2, 3), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), Recipe(lr=0.1))
    with RunStore(tmp_path, {}, {}) as store:
        store.save({**trainer.state(), **change} if change else {})
        if "iteration" in change:
            store.rows.append({"step": 1})
        with pytest.raises(
            StoreError, match=r"checkpoint.pt: expected the state of this training, got another \(.*--over"
        ):
            run(store, trainer, [], dict, 1)
