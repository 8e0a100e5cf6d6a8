"""The store at every call by which it writes: on a full disk, in a process that dies, and in a power cut."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_disk import ABSENT, Died, Disk

from experiments.common import folder_lock
from experiments.common.store import RunStore, StoreError, read_metrics

CONFIG, HERE = {"lr": 0.1}, {"torch": "1"}
FILES = ["checkpoint.pt", "config.json", "environment.json", "metrics.csv", "spectrum.csv"]


def step(folder: Path, environment: dict[str, Any] | None = None) -> None:
    """Open a run, add a row and a line of a table, and save."""
    with RunStore(folder, CONFIG, environment or HERE) as store:
        count = len(store.rows)
        store.rows.append({"iteration": count, "loss": 1 / (count + 3)})
        store.tables["spectrum"] = [*store.tables.get("spectrum", []), {"index": count}]
        store.save({"iteration": count, "w": torch.full((3,), float(count))}, finished=count == 1)


def rows(folder: Path) -> int:
    """The number of rows in a run, all of whose files agree."""
    with RunStore(folder, CONFIG, HERE) as store:
        count = len(store.rows)
        if count:
            assert store.state is not None and torch.equal(store.state["w"], torch.full((3,), float(count - 1)))
            assert len(store.tables["spectrum"]) == count and store.finished == (count == 2)
            assert read_metrics(folder) == store.rows
    # Half of a claim to a lock stays for ten minutes, in nobody's way.
    found = sorted(path.name for path in folder.iterdir() if path.suffix != ".claim")
    assert found == (FILES if count else FILES[1:3])
    return count


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes all locks so far those of a process that has ended, as this one is to have."""
    this_process, has_ended = folder_lock._this_process, folder_lock._has_ended
    tokens: set[str] = set()
    ended: set[str] = set()

    def noted() -> folder_lock.Holder:
        holder = this_process()
        tokens.add(holder.token)
        return holder

    monkeypatch.setattr(folder_lock, "_this_process", noted)
    monkeypatch.setattr(
        folder_lock, "_has_ended", lambda holder, *files: holder.token in ended or has_ended(holder, *files)
    )
    monkeypatch.setattr(folder_lock.FolderLock, "_show_life", lambda lock: None)  # a thread would outlive the process
    return lambda: ended.update(tokens)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.mark.parametrize(
    ("begun", "dies"), [(True, False), (True, True), (False, True)], ids=["full disk", "death", "death of a new run"]
)
def test_a_fault_at_every_call(begun: bool, dies: bool, end: Callable[[], None], tmp_path: Path) -> None:
    before, folder = tmp_path / "before", tmp_path / "run"
    before.mkdir()
    if begun:
        step(before)
    shutil.copytree(before, folder)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder / "checkpoint.pt")
        step(folder)
    assert len(disk.calls) > 25
    for at in range(len(disk.calls)):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        told = ""
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, folder / "checkpoint.pt", at, dies=dies)
            try:
                step(folder)
            except Died:
                assert dies
            except StoreError as error:
                told = str(error)
        end()
        assert dies or disk.calls[at].startswith("unlink") or ("No space left" in told and str(folder) in told)
        if not dies:
            assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp")), disk.calls[at]
        found = rows(folder)
        assert found in (int(begun), int(begun) + 1), disk.calls[at]


def test_a_power_cut_leaves_a_whole_file_of_before_or_after(tmp_path: Path) -> None:
    for name in FILES:
        for begun in (False, True):
            folder = tmp_path / f"{name}-{begun}"
            folder.mkdir()
            if begun:
                step(folder)
            path = folder / name
            old = path.read_bytes() if begun else ABSENT
            with pytest.MonkeyPatch.context() as patch:
                disk = Disk(patch, path)
                step(folder, {"torch": "2"})
                assert disk.possible() == {path.read_bytes()}
            assert all(left <= {old, path.read_bytes()} for left in disk.left), name


@pytest.mark.parametrize("without", ["file", "folder"])
def test_a_forgotten_fsync_is_noticed(without: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, path, without=without)
        step(tmp_path)
        assert disk.possible() != {path.read_bytes()}


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    step(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunStore(tmp_path, CONFIG, HERE) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(
                StoreError, match=r"checkpoint.pt cannot be written \(File too large\); it is as it was; "
            ):
                store.save({"w": torch.zeros(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert rows(tmp_path) == 1
