"""The process of a contender, with a limit on its memory and on the time of every answer."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.comparison.worker import OUT_OF_MEMORY

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


class Refused(Exception):
    """A request that was not fulfilled: kind "memory", "time" or "failed", and a clause for the table."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerProcess:
    """A process that runs comparison/worker.py under the interpreter of a contender, in the repository root."""

    def __init__(self, python: Path, threads: int, memory_limit: int | None) -> None:
        self.memory_limit = memory_limit
        self.noise = tempfile.TemporaryFile()  # noqa: SIM115
        count = str(threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        if python != Path(sys.executable):  # other environments see nothing of this one
            environment.pop("PYTHONPATH", None)
        limit = [] if memory_limit is None else [str(memory_limit)]
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.comparison.worker", *limit],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.noise,
            start_new_session=True,  # an interruption reaches the runner alone, which then ends its workers
        )
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """The answer to a request (see comparison/worker.py).

        Raises:
            Refused: where the answer is an error, does not come in time, or the process ends; only after an error does
                the worker go on.
        """
        if not self.alive:
            raise self._ended()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        line = self._line(time.monotonic() + seconds)
        if line is None:
            self.close()
            raise Refused("time", f"over {seconds:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            if answer["error"] == "memory":
                raise Refused("memory", self._out_of_memory())
            raise Refused(answer["error"], answer["message"])
        return answer

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.selector.close()
        self.process.stdin.close()
        self.process.stdout.close()
        self.noise.close()

    def _line(self, deadline: float) -> bytes | None:
        while b"\n" not in self.buffer:
            if not self.selector.select(max(0.0, deadline - time.monotonic())):
                return None
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._ended()
            self.buffer += part
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def _ended(self) -> Refused:
        code = self.process.wait()
        if self.noise.closed:
            return Refused("failed", "its process was ended before")
        self.noise.seek(0)
        lines = self.noise.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code == -signal.SIGKILL or any(OUT_OF_MEMORY.search(line) for line in lines[-20:]):
            return Refused("memory", self._out_of_memory())
        last = lines[-1].strip()[:200] if lines else "no message"
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return Refused("failed", f"the process ended with {how}: {last}")

    def _out_of_memory(self) -> str:
        return "out of memory" + ("" if self.memory_limit is None else f" ({self.memory_limit / GIB:.3g} GiB)")
