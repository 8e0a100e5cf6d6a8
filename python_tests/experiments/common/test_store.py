"""The result store: what survives, what is refused, and that metrics follow the checkpoint."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import experiments
from experiments.common import checkpoint_file
from experiments.common.store import (
    BusyError,
    RunStore,
    StoreError,
    describe_environment,
    read_metrics,
    require_config,
)

CONFIG = {"lr": 0.1, "depth": 3}
HERE = {"torch": "1", "threads": 2}
RESULTS = Path(experiments.__file__).parent / "results"


def opened(folder: Path, config: dict[str, Any] | None = None, **options: Any) -> RunStore:
    return RunStore(folder, config or CONFIG, options.pop("environment", HERE), **options)


def filled(folder: Path) -> bytes:
    with opened(folder) as store:
        store.rows += [{"iteration": 0, "cka/layer1": 0.1 + 0.2}, {"iteration": 1, "cka/layer1": math.nan}]
        store.save({"iteration": 1, "w": torch.arange(3.0)}, finished=True)
    return (folder / "metrics.csv").read_bytes()


def test_round_trip(tmp_path: Path) -> None:
    metrics = filled(tmp_path / "run")
    header, *lines = metrics.decode().splitlines()
    assert header == "iteration,cka/layer1,digest"
    assert [line.rpartition(",")[0] for line in lines] == ["0,0.30000000000000004", "1,nan"]
    with opened(tmp_path / "run") as store:
        assert store.state is not None
        assert torch.equal(store.state["w"], torch.arange(3.0))
        assert store.finished
        assert store.rows[0]["cka/layer1"] == 0.1 + 0.2
        assert not store.notes
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["environments"] == [HERE]


def test_a_torn_write_does_not_matter(tmp_path: Path) -> None:
    metrics = filled(tmp_path)
    (tmp_path / ".checkpoint.pt.0123456789abcdef.tmp").write_bytes(b"half a check")
    (tmp_path / "metrics.csv").write_bytes(metrics[:7])
    with opened(tmp_path) as store:
        assert len(store.rows) == 2
    assert (tmp_path / "metrics.csv").read_bytes() == metrics
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".json", ".pt"]


def test_tables_never_have_more_than_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = filled(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with opened(tmp_path) as store:
        store.rows.append({"iteration": 2, "cka/layer1": 0.5})
        monkeypatch.setattr(torch, "save", fails)
        with pytest.raises(StoreError, match="no space left"):
            store.save({"iteration": 2})
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
    (tmp_path / ".config.json.0123456789abcdef.tmp").write_text("{")
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


def written(folder: Path, content: Any) -> None:
    """Leaves a checkpoint with any content and the digest of that."""
    with (folder / "checkpoint.pt").open("wb") as file:
        checkpoint_file.write(file, content)


def test_checkpoints_with_code_are_not_loaded(tmp_path: Path) -> None:
    filled(tmp_path)
    written(tmp_path, {"state": Path("x"), "rows": [], "tables": {}, "finished": True})
    with pytest.raises(
        StoreError, match=r"checkpoint.pt: expected a checkpoint .*more in it than tensors and plain types"
    ):
        opened(tmp_path)


WHOLE: dict[str, Any] = {"state": {}, "rows": [], "tables": {}, "finished": True}


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"state": {}},
        {**WHOLE, "state": [1]},
        {**WHOLE, "rows": [[1]]},
        {**WHOLE, "rows": [{"iteration": torch.ones(2)}]},
        {**WHOLE, "rows": [{"iteration": 0}, {"iteration": 1, "loss": 0.5}]},
        {**WHOLE, "finished": 1},
        {**WHOLE, "tables": {"../../spectrum": [{"index": 1}]}},
        {**WHOLE, "tables": {"/tmp/spectrum": [{"index": 1}]}},
        {**WHOLE, "tables": {"metrics": [{"index": 1}]}},
        {**WHOLE, "tables": {1: [{"index": 1}]}},
        {**WHOLE, "tables": {"spectrum": {"index": 1}}},
    ],
)
def test_checkpoints_of_another_content_are_refused_and_write_nothing(tmp_path: Path, content: Any) -> None:
    folder = tmp_path / "runs" / "run"
    filled(folder)
    written(folder, content)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=r"checkpoint.pt: expected a checkpoint of this program, got .*--overwrite$"):
        opened(folder)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_checkpoint_without_a_digest_is_told_as_one_of_an_earlier_version(tmp_path: Path) -> None:
    filled(tmp_path)
    torch.save(WHOLE, tmp_path / "checkpoint.pt")
    with pytest.raises(StoreError, match=r"checkpoint.pt: .*does not end in its digest.*or of an earlier version"):
        opened(tmp_path)


def test_no_bit_of_a_checkpoint_can_change(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreError, match=r"checkpoint.pt: expected a checkpoint .* digest"):
            opened(tmp_path)
    path.write_bytes(whole)
    opened(tmp_path).close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"\xff"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"[1, 2]"),
        ("environment.json", b"\xff"),
        ("environment.json", b"3"),
        ("environment.json", b'[{"torch": "1"}]'),
        ("environment.json", b'{"environments": [1], "digest": "sha256:0"}'),
        ("checkpoint.pt", b""),
        ("checkpoint.pt", bytes(100_000)),
    ],
)
def test_files_of_another_content_are_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    filled(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{name}: expected .*"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "checkpoint.pt"])
def test_folders_in_place_of_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=name):
        opened(tmp_path)


def test_an_environment_that_has_changed_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "environment.json"
    path.write_text(path.read_text().replace('"threads": 2', '"threads": 4'))
    with pytest.raises(StoreError, match=r"environment.json: .*has changed since it was written.*delete it"):
        opened(tmp_path)
    path.unlink()
    opened(tmp_path).close()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(BusyError, match="another process writes here"):
        opened(tmp_path)
    opened(tmp_path).close()  # free again


def test_a_file_system_without_hard_links_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with opened(tmp_path) as store:
        assert "without hard links" in store.notes[0]
        store.save({})


def test_a_lock_is_not_lost_unnoticed(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        (tmp_path / ".lock").unlink()  # as a user may, who takes it for one that was left behind
        with opened(tmp_path) as other, pytest.raises(BusyError, match=r"\.lock: expected the lock of this process"):
            other.save({})
            store.save({})


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "write_text", denied)
    with pytest.raises(StoreError, match=r"cannot be used \(.*Permission denied.*\); choose another --output$"):
        opened(tmp_path)


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


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        changed(lambda content: b""),
        changed(lambda content: b"iteration\nnone\n"),
        changed(lambda content: b"iteration,loss\n1\n"),
        changed(lambda content: b"iteration,loss\n1,2,3\n"),
        changed(lambda content: b"iteration,loss\n"),
        changed(lambda content: b"iteration\n\xff\n"),
        changed(lambda content: content.replace(b"0.3", b"0.4")),
        changed(lambda content: content.replace(b",digest", b",digesu")),
        changed(lambda content: content[: content.rindex(b"1,nan")]),
        changed(lambda content: content[: content.index(b"\n") + 1]),
        changed(lambda content: content.splitlines(keepends=True)[0] * 2),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_damaged_metrics_are_one_sentence_and_written_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    before = filled(tmp_path)
    path = tmp_path / "metrics.csv"
    damage(path)
    with pytest.raises(StoreError, match=r"metrics.csv: expected a table of numbers, got: .*; delete it, and "):
        read_metrics(tmp_path)
    if path.is_file():
        opened(tmp_path).close()
        assert path.read_bytes() == before


def test_metrics_of_before_digests_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("iteration,loss\n0,0.5\n1,nan\n")
    first, second = read_metrics(tmp_path)
    assert first == {"iteration": 0, "loss": 0.5} and math.isnan(second["loss"])


def test_committed_results_are_read() -> None:
    folders = sorted(path.parent for path in RESULTS.glob("width-fashion-mnist/*/metrics.csv"))
    assert folders
    for folder in folders:
        assert read_metrics(folder)


def test_going_on_elsewhere_is_noted(tmp_path: Path) -> None:
    filled(tmp_path)
    elsewhere = {"torch": "1", "threads": 8}
    with opened(tmp_path, environment=elsewhere) as store:
        assert len(store.notes) == 1
        assert "threads" in store.notes[0]
        assert "torch" not in store.notes[0].partition("(")[2]
    assert json.loads((tmp_path / "environment.json").read_text())["environments"] == [HERE, elsewhere]


def test_environment_is_plain_and_tells_no_host(tmp_path: Path) -> None:
    import platform

    described = json.dumps(describe_environment(torch.device("cpu"), {"version": "0"}))
    assert torch.__version__ in described
    assert f'"{platform.node()}"' not in described
    assert str(Path.home()) not in described
