"""Random damage to every kind of file: refused by name, or read right (benchmarks/file_damage.py)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from random import Random

import pytest

from ahkernels.files import json_format
from benchmarks import file_damage
from benchmarks.common.script import RESULTS

pytest.importorskip("safetensors")
DAMAGES = 35  # of each kind; the benchmark does 2,000


@pytest.mark.parametrize("name", file_damage.KINDS)
def test_no_damage_is_taken_for_content(name: str, one_thread: None, tmp_path: Path) -> None:
    kind = file_damage.KINDS[name]
    found = file_damage.damage(kind, DAMAGES, zlib.crc32(name.encode()), tmp_path)
    assert found["wrong"] == 0 and found["refused"] > 0
    assert kind.blind or found["not noticeable"] == 0


def test_damage_that_is_believed_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(json_format, "require_digest", lambda found, parts: None)
    assert file_damage.damage(file_damage.KINDS["history as json"], 70, 0, tmp_path)["wrong"] > 0


@pytest.mark.parametrize("act", file_damage.DAMAGES)
def test_damages_change_a_file(act: file_damage.Damage) -> None:
    content = bytes(range(256)) * 4
    assert all(act(content, Random(seed)) != content for seed in range(20))


def test_the_committed_figures_are_of_these_kinds() -> None:
    found = json.loads((RESULTS / "file_damage.json").read_text())
    assert [line["kind"] for line in found["table"]] == list(file_damage.KINDS)
    for line in found["table"]:
        assert sum(line[outcome] for outcome in file_damage.OUTCOMES) == found["damages"] >= 2000
        assert line["wrong"] == 0
