"""One run's folder: configuration, environment, checkpoint and metrics; it may be killed at any moment.

The checkpoint is the single source of truth: it holds the training state *and* every row measured so far, and
it is replaced atomically. ``metrics.csv``, and any further table, is derived from it at every save and every opening,
so that it cannot stay ahead or behind.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pickle
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy
import torch

Row = dict[str, float]  # one measurement, column name -> value


class StoreError(RuntimeError):
    """A folder cannot be used for this run; the message says why and what to do."""


class BusyError(StoreError):
    """Another process has the folder."""


class RunStore:
    """The folder of one run, locked against other processes while open; use it as a context manager.

    Attributes:
        folder: The folder with config.json, environment.json, checkpoint.pt, metrics.csv and a file for each table.
        rows: The measurements so far, in order.
        tables: Further results by name, each kept as NAME.csv; to be saved with the next ``save``.
        state: The training state at the last save, or None before the first one.
        finished: Whether the run reached its end.
        notes: What somebody who resumes this run should know, in sentences.

    Args:
        folder: The folder, which is made where it does not exist.
        config: What determines the numbers, JSON-serialisable.
        environment: What the numbers were computed on, JSON-serialisable. Every distinct one is kept.
        overwrite: Whether to discard a run that the folder holds.
        tables: Names of the tables that such a run may have left, to be discarded with it.

    Raises:
        StoreError: If the folder holds a run of another configuration, something that is no run, or damaged
            files.
        BusyError: If another process writes to it.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        environment: dict[str, Any],
        overwrite: bool = False,
        tables: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self.tables: dict[str, list[Row]] = {}
        self.state: dict[str, Any] | None = None
        self.finished = False
        self.notes: list[str] = []
        make_folder(folder)
        self._lock = self._locked()
        try:
            if overwrite:
                derived = [f"{name}.csv" for name in ("metrics", *tables)]
                for name in ("checkpoint.pt", *derived, "environment.json", "config.json"):
                    (folder / name).unlink(missing_ok=True)
            self._check_config(config, overwrite)
            self._add_environment(environment)
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The name of the run, which is that of its folder."""
        return self.folder.name

    def save(self, state: dict[str, Any], finished: bool = False) -> None:
        """Replace the checkpoint by this state (tensors and plain types) and the results, then write the tables."""
        self.state, self.finished = state, finished
        content = {"state": state, "rows": self.rows, "tables": self.tables, "finished": finished}
        with replaced(self.folder / "checkpoint.pt") as file:  # straight to the disk: it may be most of the memory
            torch.save(content, file)
        self._write_tables()

    def close(self) -> None:
        """Let other processes have the folder."""
        os.close(self._lock)

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locked(self) -> int:
        """Lock the folder itself: the lock leaves no file and ends with the process, however that ends."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise BusyError(
                f"{self.folder}: another process writes here; wait for it or choose another --output"
            ) from error
        except OSError:  # go on without
            self.notes.append(f"{self.folder} is on a file system without locks: let only one process write here")
        return handle

    def _check_config(self, config: dict[str, Any], overwrite: bool) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            others = sorted(p.name for p in self.folder.iterdir() if p.suffix != ".tmp")
            if others and not overwrite:
                raise StoreError(
                    f"{self.folder}: expected an empty folder or one with a config.json, "
                    f"got one with {others[0]}; choose another --output"
                )
            write_atomically(path, json_of(config))
            return
        require_config(self.folder, config)

    def _add_environment(self, environment: dict[str, Any]) -> None:
        path = self.folder / "environment.json"
        seen = _read_json(path, list) if path.exists() else []
        wanted = json.loads(json_of(environment))
        if wanted in seen:
            return
        if seen:
            keys = sorted(k for k in seen[-1].keys() | wanted.keys() if seen[-1].get(k) != wanted.get(k))
            self.notes.append(
                f"{self.folder} was begun in another environment ({', '.join(keys)}): "
                "the last digits may differ from an uninterrupted run"
            )
        write_atomically(path, json_of([*seen, wanted]))

    def _load(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            self.state, self.rows, self.finished = content["state"], content["rows"], content["finished"]
            self.tables = content.get("tables", {})
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: expected a checkpoint of this program, got a file that cannot be read ({error}); "
                "discard the run with --overwrite"
            ) from error
        self._write_tables()

    def _write_tables(self) -> None:
        """Write the tables that the folder does not hold yet, or holds with other rows."""
        for name, rows in {"metrics": self.rows, **self.tables}.items():
            path, content = self.folder / f"{name}.csv", csv_of(rows)
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, content)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that lead to it, where it does not exist.

    Raises:
        StoreError: If there is a file in its place or on the way to it, or it may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{folder}: expected a folder, got a file; choose another --output") from error
    except OSError as error:
        raise StoreError(f"{folder}: cannot be made ({error.strerror}); choose another --output") from error


def require_config(folder: Path, config: dict[str, Any]) -> None:
    """Check, without a lock, that a folder holds no run of another configuration.

    Raises:
        StoreError: If it does, with what differs.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    found = _read_json(path, dict)
    wanted = json.loads(json_of(config))
    differing = sorted(
        key for key in found.keys() | wanted.keys() if found.get(key, _ABSENT) != wanted.get(key, _ABSENT)
    )
    if differing:
        lines = [f"  {key}: {found.get(key, _ABSENT)} there, {wanted.get(key, _ABSENT)} asked for" for key in differing]
        raise StoreError(
            f"{folder} holds a run with another configuration:\n"
            + "\n".join(lines)
            + "\nChoose another folder with --output, or discard that run with --overwrite."
        )


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a folder's metrics.csv, without a lock; none where there is no such file.

    They may be fewer than the checkpoint holds, after a crash between its writing and theirs, and are never more.

    Raises:
        StoreError: If it is no table of numbers.
    """
    try:
        text = (folder / "metrics.csv").read_text()
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
    except (TypeError, ValueError) as error:
        raise StoreError(f"{folder / 'metrics.csv'}: expected a table of numbers, got: {error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same folder; on a file system without locks, do not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` at the end of the block.

    After a crash at any moment, or an error in the block, ``path`` holds the old content or the new.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name must survive a power cut, too
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file, whole or not at all."""
    with replaced(path) as file:
        file.write(content)


def describe_environment(device: torch.device, build_info: dict[str, Any]) -> dict[str, Any]:
    """Describe what the numbers may depend on besides the configuration, without host names and paths."""
    described = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "ahkernels": build_info,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise StoreError(f"{path}: expected JSON, got: {error}; discard the run with --overwrite") from error
    if not isinstance(content, kind):
        raise StoreError(f"{path}: expected a JSON {kind.__name__}; discard the run with --overwrite")
    return content


class _Absent:
    def __str__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def csv_of(rows: Sequence[Mapping[str, object]]) -> bytes:
    """A CSV line per row; floats are the shortest text that reads back as the same number, nan is nan."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def json_of(content: Any) -> bytes:
    """Indented JSON; what JSON does not know becomes text."""
    return (json.dumps(content, indent=2, default=str) + "\n").encode()
