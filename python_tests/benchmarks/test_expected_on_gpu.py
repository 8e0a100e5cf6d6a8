"""What a GPU is expected to take: the page has the tables of the script, and they follow from counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common.script import RESULTS
from benchmarks.gpu import expected

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
CHIP = expected.Chip()
COUNTS = {"mainloop": 100, "epilogue": 600}


def test_the_page_has_the_tables() -> None:
    page = PAGE.read_text()
    for table in expected.tables().split("\n\n"):
        assert table in page


def test_a_tile_by_hand() -> None:
    """128 x 128 x 256 multiply-adds at 2048 in a cycle; two panels of 128 rows in one bf16 part."""
    tile = expected.Tile.of("medium", COUNTS, CHIP)
    assert tile.tensor_cores * CHIP.clock == pytest.approx(2048)
    assert tile.turns * CHIP.clock == pytest.approx((2048 + 1000) / 2)
    assert tile.cache * CHIP.cache / CHIP.multiprocessors == pytest.approx(2 * 128 * 256 * 2)
    assert (tile.bound, tile.seconds) == ("cache", tile.cache)
    halves = expected.Tile.of("highest", COUNTS, CHIP)
    assert halves.tensor_cores == pytest.approx(6 * tile.tensor_cores)
    assert halves.cache == pytest.approx(2 * 3 * 0.75 * tile.cache)


def test_tiles_of_a_layer() -> None:
    assert expected.tiles_of(1000) == 79 * 80 / 2
    tile = expected.Tile.of("medium", COUNTS, CHIP)
    times = expected.stages(1000, "medium", tile, 10, CHIP)
    assert times["tiles"] == pytest.approx(24 * tile.seconds)  # 3160 tiles, 132 at a time
    assert times["host"] == pytest.approx(10 * CHIP.launch)


def test_measured_times_stand_beside(tmp_path: Path) -> None:
    for name in ("machine_code.json", "launches.json"):
        (tmp_path / name).write_text((RESULTS / name).read_text())
    rows = [{"n": 6000, "precision": "high", "stage": "tiles", "seconds": 0.00321}]
    (tmp_path / "cuda_stages.json").write_text(json.dumps({"rows": rows}))
    (line,) = [line for line in expected.tables(tmp_path).splitlines() if line.startswith("| 6,000 | tiles")]
    cells = line.split("|")[3:6]
    assert ["(measured 3.21)" in cell for cell in cells] == [False, True, False]
