"""Signals while a study runs (experiments/common/running.py)."""

from __future__ import annotations

import io
import signal
import sys

import pytest

from experiments.common.running import Stop, say


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
