"""The page of results, from small results made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison import page
from benchmarks.comparison.tasks import Task

MIB = 1 << 20


def row(name: str, seconds: float | None, mib: float = 1, outcome: str = "ok", **others: Any) -> dict[str, Any]:
    trial = {"variant": "", "outcome": outcome, "reason": None, "seconds": seconds, "peak_bytes": int(mib * MIB)}
    trial |= {"error": 1e-7} | others
    found = {"contender": name, "title": name.title(), "variant": "", "outcome": outcome, "peak_bytes": int(mib * MIB)}
    found |= {"error": 1e-7, "reason": None, "trials": [trial], **others}
    if seconds is not None:
        found |= {"median_s": seconds, "min_s": 0.9 * seconds, "rounds_s": [seconds]}
    return found


def task(n: int, rows: list[dict[str, Any]], flops: float = 1e9) -> dict[str, Any]:
    asked = Task("alignment", n=n)
    work = {"flops": flops, "bytes": 1e6}
    return {"task": asked.to_dict(), "name": asked.name, "reference": "float64", "rows": rows, "work": work}


@pytest.fixture
def record() -> dict[str, Any]:
    """Ours wins at n = 64 and loses at n = 256; a library, a hand-written contender, and every way to fail."""
    failures = [
        row("cannot", None, outcome="no", reason="only for | convolutions"),
        row("large", None, outcome="memory", reason="out of memory (16 GiB)"),
        row("slow", None, outcome="time", reason="over 10 s"),
        row("false", 0.001, outcome="wrong", error=0.25),
    ]
    tasks = [
        task(64, [row("ours", 0.02, 20), row("hand", 0.03, 30), row("library", 4.0, 2000), *failures]),
        task(256, [row("ours", 0.2, 20), row("hand", 0.1, 8), row("library", 8.0, 9000)]),
    ]
    points = [
        task(n, [row("ours", 1e-6 * n**2, n / 10), row("library", 1e-5 * n**3, n**2 / 10)], 1e3 * n**2)
        for n in (64, 128, 256, 512)
    ]
    for point in points[2:]:
        point["rows"][1] = row("library", None, outcome="time", reason="over 10 s")
    names = ("ours", "hand", "library", "cannot", "large", "slow", "false")
    return {
        "benchmark": "comparison",
        "configuration": {"settings": {"call_limit": 10.0, "image_limit": 60.0, "memory_limit": 16 << 30}},
        "machine": {"cpu": "a processor", "threads": 2, "cores": 4, "torch": "2.13.0", "python": "3.12"},
        "ceilings": {"flops_per_s": 1e11, "bytes_per_s": 1e10},
        "contenders": {name: {"title": name.title(), "versions": {}, "by_hand": name == "hand"} for name in names},
        "seconds": 1500.0,
        "tasks": tasks,
        "sweeps": [{"name": "sweep-n", "axis": "n", "base": Task("alignment").to_dict(), "records": points}],
    }


@pytest.fixture
def text(record: dict[str, Any], tmp_path: Path) -> str:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "comparison-cpu.json").write_text(json.dumps(record))
    section = {"title": "Breakdown of a call", "text": "Where time goes.", "columns": ["stage", "s"]}
    section |= {"rows": [["capture", 0.12345], ["tiles", 2]], "machine": {"cpu": "a processor", "threads": 2}}
    (folder / "breakdown.json").write_text(json.dumps(section))
    assert page.write(folder) == tmp_path / "RESULTS.md"
    for name in ("tasks", "sweeps"):
        assert (folder / f"comparison-cpu-{name}.png").read_bytes().startswith(b"\x89PNG")
    return (tmp_path / "RESULTS.md").read_text()


def test_the_page_has_a_row_for_every_contender(text: str) -> None:
    assert "| **Ours** |  | 20 ms | 18 ms | 1 | 20 MiB | 1.0e-07 | 50 | 50% |" in text
    assert "| Library |  | 4 s | 3.6 s | 200 | 2,000 MiB | 1.0e-07 |" in text
    assert "no: only for \\| convolutions" in text
    assert "out of memory (16 GiB)" in text
    assert "over 10 s" in text
    assert "**wrong by 2.5e-01**" in text
    assert "Floor: 10 ms for 1 Gflop, 0.1 ms for 1 MB." in text


def test_the_summary_says_where_ours_is_behind(text: str) -> None:
    assert "| alignment of all layers, n = 64 | **20 ms** | Hand, 30 ms | 1.5 | Library, 4 s | 200 | 20 MiB |" in text
    assert "- alignment of all layers, n = 256: Hand takes 100 ms, ours 2.00 times as long" in text
    assert "- alignment of all layers, n = 256: Hand needs 8.0 MiB, ours 12 MiB more" in text
    assert "n = 64: Hand takes" not in text


def test_the_page_has_exponents_and_the_sections_of_other_scripts(text: str) -> None:
    assert "| samples n | **Ours** | 64 to 512 | 128 to 512 | 2.00 | 1.00 | 2.00 |  |" in text
    assert "| samples n | Library | 64 to 128 | too few |  |  |  | over 10 s |" in text
    assert "## Breakdown of a call\n\nWhere time goes.\n\n| stage | s |" in text
    assert "| capture | 0.1235 |\n| tiles | 2 |" in text
    assert "Measured on a processor, 2 cores." in text


def test_the_same_results_give_the_same_page(text: str, tmp_path: Path) -> None:
    before = (tmp_path / "results" / "comparison-cpu-tasks.png").read_bytes()
    page.write(tmp_path / "results")
    assert (tmp_path / "RESULTS.md").read_text() == text
    assert (tmp_path / "results" / "comparison-cpu-tasks.png").read_bytes() == before


def test_a_wrong_ours_is_no_unit(record: dict[str, Any]) -> None:
    record["tasks"] = record["tasks"][:1]
    record["tasks"][0]["rows"][0] = row("ours", 0.02, outcome="wrong", error=0.1)
    text = page.tables_of(record)
    assert "ours has no right value" in text
    assert "| Library |  | 4 s | 3.6 s |  |" in text
