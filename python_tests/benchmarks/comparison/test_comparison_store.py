"""The file of a run's results, of one configuration and whole after every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison.store import MismatchError, Store


def head(torch: str = "2.13.0", rate: float = 1.0) -> dict[str, Any]:
    found: dict[str, Any] = {"configuration": {"device": "cpu", "torch": torch}, "ceilings": {"flops_per_s": rate}}
    return found | {"seconds": 1.0, "contenders": {"ours": {"title": "ours"}}}


def test_finished_tasks_are_found_again(tmp_path: Path) -> None:
    path, order = tmp_path / "results.json", ["a", "b"]
    store = Store(path, head(), keep=False)
    store.put("tasks", {"name": "b", "rows": []}, order)
    store.put("tasks", {"name": "a", "rows": []}, order)
    again = Store(path, head(rate=0.5), keep=True)
    assert [one["name"] for one in again.record["tasks"]] == ["a", "b"]
    assert again.record["ceilings"] == {"flops_per_s": 1.0}
    again.put("tasks", {"name": "a", "rows": [1]}, order)
    assert Store(path, head(), keep=True).task("a") == {"name": "a", "rows": [1]}
    assert Store(path, head(), keep=False).task("a") is None
    assert list(tmp_path.iterdir()) == [path]


def test_results_of_another_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Store(path, head(), keep=False).write()
    with pytest.raises(MismatchError, match=r"another configuration \(torch: 2\.13\.0 there, 2\.14\.0 now\)"):
        Store(path, head("2.14.0"), keep=True)
