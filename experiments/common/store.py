"""One run's folder: configuration, environment, checkpoint and metrics; it may be killed at any moment.

The checkpoint is the single source of truth: it holds the training state *and* every row measured so far, and
it is replaced atomically. ``metrics.csv``, and any further table, is derived from it at every save and every opening,
so that it cannot stay ahead or behind. What is read again carries a digest, which is looked at before anything else:
damage is one sentence that names the file, and never other numbers. The configuration needs none, as it is compared
with the one that is asked for.
"""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy
import torch

from ahkernels.files import csv_table, json_format
from ahkernels.files.parsing import reason_of
from ahkernels.files.replace import replace_file, temporary_files
from experiments.common import checkpoint_file, folder_lock

Row = dict[str, float]  # one measurement, column name -> value

CHECKPOINT, METRICS, CONFIG, ENVIRONMENT = "checkpoint.pt", "metrics.csv", "config.json", "environment.json"


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
            files, or if it cannot be written to.
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
        with usable(folder):
            self._lock = self._locked()
        try:
            with usable(folder):
                if self._lock is not None:
                    remove_temporary_files(folder)
                if overwrite:
                    for name in (CHECKPOINT, METRICS, *(f"{table}.csv" for table in tables), ENVIRONMENT, CONFIG):
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
        """Replace the checkpoint by this state (tensors and plain types) and the results, then write the tables.

        Raises:
            StoreError: If they cannot be written, as on a full disk. Each file then is as it was.
            BusyError: If another process has taken over the folder, as after a long silence of this one.
        """
        self.state, self.finished = state, finished
        content = {"state": state, "rows": self.rows, "tables": self.tables, "finished": finished}
        with usable(self.folder):
            if self._lock is not None and not self._lock.held:
                raise BusyError(f"{self._lock.path}: expected the lock of this process, got none or another's")
            # Straight to the disk: it may be most of the memory.
            _replace(self.folder / CHECKPOINT, lambda file: checkpoint_file.write(file, content))
            self._write_tables()

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locked(self) -> folder_lock.FolderLock | None:
        try:
            return folder_lock.FolderLock(self.folder)
        except folder_lock.HeldError as error:
            raise BusyError(
                f"{self.folder}: another process writes here ({error}); wait for it or choose another --output"
            ) from error
        except folder_lock.NoLinksError:  # go on without
            self.notes.append(f"{self.folder} is on a file system without hard links: let only one process write here")
            return None

    def _check_config(self, config: dict[str, Any], overwrite: bool) -> None:
        path = self.folder / CONFIG
        if not path.exists():
            others = sorted(
                p.name for p in self.folder.iterdir() if p.suffix != ".tmp" and not p.name.startswith(folder_lock.NAME)
            )
            if others and not overwrite:
                raise StoreError(
                    f"{self.folder}: expected an empty folder or one with a config.json, "
                    f"got one with {others[0]}; choose another --output"
                )
            write_atomically(path, json_of(config))
            return
        require_config(self.folder, config)

    def _add_environment(self, environment: dict[str, Any]) -> None:
        path = self.folder / ENVIRONMENT
        seen = _read_environments(path) if path.exists() else []
        wanted = json.loads(json_of(environment))
        if wanted in seen:
            return
        if seen:
            keys = sorted(k for k in seen[-1].keys() | wanted.keys() if seen[-1].get(k) != wanted.get(k))
            self.notes.append(
                f"{self.folder} was begun in another environment ({', '.join(keys)}): "
                "the last digits may differ from an uninterrupted run"
            )
        _replace(path, lambda file: json_format.write(file, {"environments": [*seen, wanted]}))

    def _load(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        try:
            content = checkpoint_file.read(path)
            for rows in (content["rows"], *content["tables"].values()):
                csv_of(rows)
        except Exception as error:  # whatever a file that is none makes of the readers
            raise StoreError(
                f"{path}: expected a checkpoint of this program, got a file that cannot be used ({reason_of(error)}); "
                "discard the run with --overwrite"
            ) from error
        self.state, self.rows, self.finished = content["state"], content["rows"], content["finished"]
        self.tables = content["tables"]
        self._write_tables()

    def _write_tables(self) -> None:
        """Write the tables that the folder does not hold yet, or holds with other rows."""
        contents = {f"{name}.csv": csv_of(rows) for name, rows in self.tables.items()}
        if self.rows:
            contents[METRICS] = csv_table.to_csv(list(self.rows[0]), self.rows)
        else:  # an empty file would look like one that is cut off
            (self.folder / METRICS).unlink(missing_ok=True)
        for name, content in contents.items():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, content)


def remove_temporary_files(folder: Path) -> None:
    """Remove the files that processes have left which were killed while they wrote; for who alone may write there."""
    for path in temporary_files(folder):
        path.unlink(missing_ok=True)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """An error of the file system in this block is told as one of the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder}: cannot be used ({error}); choose another --output") from error


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
    path = folder / CONFIG
    if not path.exists():
        return
    found = _read_config(path)
    wanted = json.loads(json_of(config))
    differing = sorted(
        key for key in found.keys() | wanted.keys() if found.get(key, _ABSENT) != wanted.get(key, _ABSENT)
    )
    if differing:
        lines = [f"  {key}: {found.get(key, _ABSENT)} there, {wanted.get(key, _ABSENT)} asked for" for key in differing]
        raise StoreError(
            f"{path}: the folder holds a run with another configuration:\n"
            + "\n".join(lines)
            + "\nChoose another folder with --output, or discard that run with --overwrite."
        )


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a folder's metrics.csv, without a lock; none where there is no such file.

    They may be fewer than the checkpoint holds, after a crash between its writing and theirs, and are never more.
    Metrics of an earlier version carry no digest, and are taken as they are.

    Raises:
        StoreError: If it is no table of numbers, or has changed since it was written.
    """
    path = folder / METRICS
    try:
        content = path.read_bytes()
        if csv_table.DIGEST in content.partition(b"\n")[0].decode().strip().split(","):
            columns, lines = csv_table.from_csv(content)
        else:
            reader = csv.DictReader(io.StringIO(content.decode()), strict=True)
            columns, lines = list(reader.fieldnames or []), list(reader)
        rows = [{name: float(value) for name, value in line.items()} for line in lines]
        if not rows or len(set(columns)) < len(columns):
            raise ValueError("it has no lines, or a column twice")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise StoreError(
            f"{path}: expected a table of numbers, got: {error}; delete it, and the study writes it again from the "
            f"{CHECKPOINT} beside it"
        ) from error
    return rows


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file, whole or not at all.

    Raises:
        StoreError: If it cannot be written, as on a full disk.
    """
    _replace(path, lambda file: file.write(content))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        replace_file(path, write)
    except OSError as error:
        raise StoreError(f"{error.strerror or error}; make room, or choose another --output") from error


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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: expected JSON, got: {error}; discard the run with --overwrite") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path}: expected names with values, got {found!r:.40}; discard the run with --overwrite")
    return found


def _read_environments(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            found = json_format.read(file).get("environments")
        if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
            raise ValueError("it does not list environments")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: expected the environments of this run, got another file ({error}); "
            "delete it to go on without its record"
        ) from error
    return found


class _Absent:
    def __str__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def csv_of(rows: Sequence[Mapping[str, object]]) -> bytes:
    """A CSV line per row; floats are the shortest text that reads back as the same number, nan is nan."""
    return csv_table.to_csv(list(rows[0]), rows, digest=False) if rows else b""


def json_of(content: Any) -> bytes:
    """Indented JSON; what JSON does not know becomes text."""
    return (json.dumps(content, indent=2, default=str) + "\n").encode()
