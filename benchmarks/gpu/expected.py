"""What a layer should take on an H200, stage by stage, from counts and ceilings, beside what was measured.

    python -m benchmarks.gpu.expected     # the tables of docs/gpu.md; needs no GPU and reads no clock

A stage has work, which is counted, and a ceiling that bounds it; its time follows. Instructions come from the machine
code of the kernels (machine_code.json, which `.ci/check_cuda.py NVCC --json FILE` writes), launches from launches.json.
Where cuda_stages.json is there, its times stand beside those that were expected, so that a run on a GPU confirms or
refutes the tables line by line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahkernels.ops.cuda.scaled_kernel import PARTS
from ahkernels.ops.cuda.tiles import SLICE, TILE
from benchmarks.common.script import RESULTS
from benchmarks.gpu.cuda_layer import OUTPUTS, PRODUCTS

SIZES, WIDTH = (1000, 6000, 60_000), 256
STAGES = ("largest numbers", "packing", "forward Gram", "tiles", "host")
# The kernel that makes the sums of squares on Hopper: sums over so long k are promoted unless at "medium".
KERNELS = {
    "medium": "wgmma::tiles<1, false, false, squares, false>",
    "high": "wgmma::tiles<2, true, false, squares, false>",
    "highest": "wgmma::tiles<3, true, false, squares, false>",
}
HALF_TILES = "highest"  # two turns for a tile
GRAM_BYTES = {"medium": 4, "high": 4, "highest": 28}  # moved for each number of P where it is made


@dataclass(frozen=True)
class Chip:
    """Ceilings of an H200 SXM: of its data sheet, but for the last three, which are assumed.

    Attributes:
        multiprocessors: Their number.
        bfloat16: Dense operations per second of the tensor cores.
        multiply_adds: Of these, per cycle and multiprocessor; the clock follows.
        gram: Operations per second of products in float32, and in float64 on the tensor cores.
        memory: Bytes per second.
        cache: Bytes per second that come from the second-level cache.
        issued: Instructions that a scheduler issues in a cycle, with one warp of a warpgroup to choose from.
        launch: Seconds that the host takes for an operation of torch.
    """

    multiprocessors: int = 132
    bfloat16: float = 989e12
    multiply_adds: int = 2048
    gram: float = 67e12
    memory: float = 4.8e12
    cache: float = 5.5e12
    issued: float = 0.6
    launch: float = 5e-6

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.bfloat16 / (2 * self.multiply_adds * self.multiprocessors)


@dataclass(frozen=True)
class Tile:
    """The time of a tile on its multiprocessor, in seconds by what may bound it.

    Attributes:
        tensor_cores: Its products at the rate of the data sheet: the floor.
        turns: Half of what a warpgroup takes for it, products and then entries; there are two groups.
        cache: Its factors from the second-level cache.
    """

    tensor_cores: float
    turns: float
    cache: float

    @classmethod
    def of(cls, precision: str, instructions: Mapping[str, Any], chip: Chip) -> Tile:
        """The tile at a precision, whose kernel has these counts of instructions."""
        parts, turns = PARTS[precision], 2 if precision == HALF_TILES else 1
        products = PRODUCTS[precision] * TILE * TILE * WIDTH
        tensor_cores = products / chip.multiply_adds / chip.clock
        mainloop = turns * WIDTH // SLICE * instructions["mainloop"] / chip.issued / chip.clock
        entries = turns * instructions["epilogue"] / chip.issued / chip.clock
        panels = turns * (TILE // turns + TILE) * WIDTH * 2 * parts
        turn = max(tensor_cores, mainloop) + entries
        return cls(tensor_cores, turn / 2, panels / (chip.cache / chip.multiprocessors))

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("tensor_cores", "turns", "cache"), key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """The time."""
        return float(getattr(self, self.bound))


def tiles_of(n: int) -> float:
    """Tiles on and above the diagonal."""
    side = -(-n * OUTPUTS // TILE)
    return side * (side + 1) / 2


def stages(n: int, precision: str, tile: Tile, launches: float, chip: Chip) -> dict[str, float]:
    """Seconds of each stage for a layer of n samples."""
    factors = 4 * n * (OUTPUTS + 1) * WIDTH
    parts = n * OUTPUTS * WIDTH * (4 + 2 * PARTS[precision])
    pairs = n * (n + TILE) / 2
    gram = max(2 * pairs * WIDTH / chip.gram, GRAM_BYTES[precision] * pairs / chip.memory)
    in_turn = -(-tiles_of(n) // chip.multiprocessors)
    times = (factors / chip.memory, parts / chip.memory, gram, in_turn * tile.seconds, launches * chip.launch)
    return dict(zip(STAGES, times, strict=True))


def hopper_kernels(machine_code: Path) -> dict[str, dict[str, Any]]:
    """The rows of the kernels that make the sums of squares on Hopper, by precision."""
    rows = {row["kernel"]: row for row in json.loads(machine_code.read_text()) if row["target"] == "sm_90a"}
    return {precision: rows[kernel] for precision, kernel in KERNELS.items()}


def launches_of_a_layer(path: Path) -> float:
    """Operations of torch for each layer of a tracker's later call, centered globally."""
    rows = json.loads(path.read_text())["rows"]
    return next(float(row[5]) for row in rows if row[:2] == ["later", "global"])


def measured(path: Path) -> dict[tuple[int, str, str], float]:
    """Seconds by samples, precision and stage, where a GPU has run them."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text())["rows"]
    return {(row["n"], row["precision"], row["stage"]): row["seconds"] for row in rows if "stage" in row}


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def table_of_tiles(tiles: Mapping[str, Tile]) -> str:
    """What a tile takes, in microseconds."""
    lines = ["| precision | tensor cores (floor) | turns | second-level cache | bound by | of the floor's rate |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for precision, tile in tiles.items():
        times = " | ".join(f"{1e6 * one:.2f} µs" for one in (tile.tensor_cores, tile.turns, tile.cache))
        share = tile.tensor_cores / tile.seconds
        lines.append(f"| {precision} | {times} | {tile.bound.replace('_', ' ')} | {share:.0%} |")
    return "\n".join(lines)


def table_of_stages(tiles: Mapping[str, Tile], launches: float, found: Mapping[Any, float], chip: Chip) -> str:
    """What each stage takes, in milliseconds: expected, and measured where it was."""
    lines = ["| n | stage | " + " | ".join(tiles) + " |", "| --- | --- |" + " --- |" * len(tiles)]
    for n in SIZES:
        by_precision = {name: stages(n, name, tile, launches, chip) for name, tile in tiles.items()}
        for stage in STAGES:
            cells = []
            for name, times in by_precision.items():
                seconds = found.get((n, name, stage))
                beside = "" if seconds is None else f" (measured {milliseconds(seconds)})"
                cells.append(f"{milliseconds(times[stage])} ms{beside}")
            lines.append(f"| {n:,} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(results: Path = RESULTS, chip: Chip | None = None) -> str:
    """Both tables, in Markdown."""
    chip = chip or Chip()
    kernels = hopper_kernels(results / "machine_code.json")
    tiles = {name: Tile.of(name, row, chip) for name, row in kernels.items()}
    launches = launches_of_a_layer(results / "launches.json")
    found = measured(results / "cuda_stages.json")
    return f"{table_of_tiles(tiles)}\n\n{table_of_stages(tiles, launches, found, chip)}"


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.gpu.expected", description=__doc__.splitlines()[0]).parse_args()
    print(tables())


if __name__ == "__main__":
    main()
