"""The result store: what survives, what is refused, and that metrics follow the checkpoint."""

from __future__ import annotations

import errno
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.store import (
    BusyError,
    RunStore,
    StoreError,
    describe_environment,
    locked,
    read_metrics,
    require_config,
)

CONFIG = {"lr": 0.1, "depth": 3}
HERE = {"torch": "1", "threads": 2}


def opened(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> RunStore:
    return RunStore(folder, config or CONFIG, options.pop("environment", HERE), **options)


def filled(folder: Path) -> bytes:
    with opened(folder) as store:
        store.rows += [{"iteration": 0, "cka/layer1": 0.1 + 0.2}, {"iteration": 1, "cka/layer1": math.nan}]
        store.save({"iteration": 1, "w": torch.arange(3.0)}, finished=True)
    return (folder / "metrics.csv").read_bytes()


def test_round_trip(tmp_path: Path) -> None:
    metrics = filled(tmp_path / "run")
    assert metrics == b"iteration,cka/layer1\n0,0.30000000000000004\n1,nan\n"
    with opened(tmp_path / "run") as store:
        assert store.state is not None
        assert torch.equal(store.state["w"], torch.arange(3.0))
        assert store.finished
        assert store.rows[0]["cka/layer1"] == 0.1 + 0.2
        assert not store.notes
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG
    assert json.loads((tmp_path / "run" / "environment.json").read_text()) == [HERE]


def test_a_torn_write_does_not_matter(tmp_path: Path) -> None:
    metrics = filled(tmp_path)
    (tmp_path / "checkpoint.pt.tmp").write_bytes(b"half a check")
    (tmp_path / "metrics.csv").write_bytes(metrics[:7])
    with opened(tmp_path) as store:
        assert len(store.rows) == 2
    assert (tmp_path / "metrics.csv").read_bytes() == metrics


def test_further_tables_follow_the_checkpoint_too(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path) as store:
        assert store.tables == {}
        store.tables["spectrum"] = [{"index": 1, "layer1": 0.1 + 0.2}, {"index": 2, "layer1": 1e-9}]
        store.save({"iteration": 1})
    table = (tmp_path / "spectrum.csv").read_bytes()
    assert table == b"index,layer1\n1,0.30000000000000004\n2,1e-09\n"
    (tmp_path / "spectrum.csv").write_bytes(table[:20])
    with opened(tmp_path) as store:
        assert store.tables["spectrum"][1] == {"index": 2, "layer1": 1e-9}
    assert (tmp_path / "spectrum.csv").read_bytes() == table
    with opened(tmp_path, overwrite=True, tables=["spectrum"]) as store:
        assert store.tables == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "environment.json"]


def test_a_folder_whose_run_died_before_its_config_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json.tmp").write_text("{")
    with opened(tmp_path) as store:
        assert store.state is None


def test_another_configuration_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(StoreError) as error:
        opened(tmp_path, {"lr": 0.2, "depth": 3, "width": 8})
    message = str(error.value)
    assert "lr: 0.1 there, 0.2 asked for" in message
    assert "width: absent there, 8 asked for" in message
    assert "depth" not in message
    assert "--output" in message
    assert "--overwrite" in message


def test_overwrite_discards_the_run_and_nothing_else(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path, {"lr": 0.2}, overwrite=True) as store:
        assert (store.rows, store.state, store.finished) == ([], None, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "environment.json", "notes.txt"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"expected an empty folder.*thesis.tex"):
        opened(tmp_path)
    with pytest.raises(StoreError, match="expected a folder, got a file"):
        opened(tmp_path / "thesis.tex")
    with pytest.raises(StoreError, match="expected a folder, got a file"):
        opened(tmp_path / "thesis.tex" / "run")


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json", "environment.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(StoreError, match=name):
        opened(tmp_path)
    opened(tmp_path, overwrite=True).close()


def test_checkpoints_with_code_are_not_loaded(tmp_path: Path) -> None:
    filled(tmp_path)
    torch.save({"state": Path("x"), "rows": [], "finished": True}, tmp_path / "checkpoint.pt")
    with pytest.raises(StoreError, match=r"checkpoint.pt: expected a checkpoint"):
        opened(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(BusyError, match="another process writes here"):
        opened(tmp_path)
    opened(tmp_path).close()  # free again


def test_a_file_system_without_locks_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with opened(tmp_path) as store, locked(tmp_path):
        assert "without locks" in store.notes[0]


def test_metrics_and_configuration_are_read_without_the_lock(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "run") == []
    require_config(tmp_path / "run", CONFIG)
    filled(tmp_path / "run")
    with opened(tmp_path / "run") as store:
        rows = read_metrics(tmp_path / "run")
        assert [list(row) for row in rows] == [["iteration", "cka/layer1"]] * 2
        assert rows[0] == store.rows[0]
        assert math.isnan(rows[1]["cka/layer1"])
        require_config(tmp_path / "run", CONFIG)
        with pytest.raises(StoreError, match=r"lr: 0.1 there, 0.2 asked for"):
            require_config(tmp_path / "run", {**CONFIG, "lr": 0.2})
    (tmp_path / "run" / "metrics.csv").write_text("iteration\nnone\n")
    with pytest.raises(StoreError, match=r"metrics.csv: expected a table of numbers"):
        read_metrics(tmp_path / "run")


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    """The block is entered by one at a time."""
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path):
        inside.set()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_going_on_elsewhere_is_noted(tmp_path: Path) -> None:
    filled(tmp_path)
    elsewhere = {"torch": "1", "threads": 8}
    with opened(tmp_path, environment=elsewhere) as store:
        assert len(store.notes) == 1
        assert "threads" in store.notes[0]
        assert "torch" not in store.notes[0].partition("(")[2]
    assert json.loads((tmp_path / "environment.json").read_text()) == [HERE, elsewhere]


def test_environment_is_plain_and_tells_no_host(tmp_path: Path) -> None:
    import platform

    described = json.dumps(describe_environment(torch.device("cpu"), {"version": "0"}))
    assert torch.__version__ in described
    assert f'"{platform.node()}"' not in described
    assert str(Path.home()) not in described
