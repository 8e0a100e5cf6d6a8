"""The CUDA kernels on host memory, compiled for the emulator: the functions of `ahkernels.ops.cuda.tiles`."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from ahkernels.ops.build import TILING
from ahkernels.ops.near_constant import TileOffsets

ROOT = Path(__file__).parent.parent
EMULATOR = ROOT / "python_tests" / "emulator"
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TILE = TILING["cuda_tile"]
# How many schedules give the same bits; a run by hand takes more.
SCHEDULES = [1000 * index for index in range(int(os.environ.get("AHKERNELS_SCHEDULES", "3")))]
RESULTS = ["squares", "matrix", "rows", "products"]


def build() -> ctypes.CDLL:
    """Compiles csrc/cuda with the emulator in the place of its instructions, once for all that run."""
    command = [
        *os.environ.get("CXX", "c++").split(),
        *("-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
        *(
            "-DAHK_EMULATOR",
            *(f"-I{include}" for include in (EMULATOR, ROOT / "csrc" / "cuda")),
            str(EMULATOR / "kernels.cpp"),
        ),
    ]
    sources = [
        *sorted((ROOT / "csrc").glob("*.h")),
        *sorted((ROOT / "csrc" / "cuda").iterdir()),
        *sorted(EMULATOR.iterdir()),
    ]
    content = b"\0".join([*(part.encode() for part in command), *(source.read_bytes() for source in sources)])
    library = ROOT / "build" / "emulator" / hashlib.sha256(content).hexdigest()[:16] / "libemulated.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            made = library.with_suffix(".tmp")
            subprocess.run([*command, "-o", str(made)], check=True)
            made.rename(library)
    loaded = ctypes.CDLL(str(library))
    loaded.error.restype = ctypes.c_char_p
    loaded.warps.restype = loaded.tile_bands.restype = ctypes.c_int64
    return loaded


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor.numel() else None)


class Device:
    """A device with (hopper) or without warpgroup products, of so many blocks at a time."""

    def __init__(self, library: ctypes.CDLL, *, hopper: bool, blocks: int = 2) -> None:
        self.library, self.hopper, self.blocks = library, hopper, blocks

    def _check(self, failed: int) -> None:
        if failed:
            raise RuntimeError(self.library.error().decode())

    def _pack(self, factor: Tensor, scale: Tensor, parts: Tensor, first: int, blocks: int) -> None:
        n, s, o, m = factor.shape
        count, all_blocks, rows, k = parts.shape
        assert 0 <= first <= all_blocks - s * blocks
        strides = (ctypes.c_int64 * 4)(*factor.stride())
        sizes = map(ctypes.c_int, (n, s, o, m))
        part_size, rows = ctypes.c_int64(all_blocks * rows * k), ctypes.c_int64(rows)
        self._check(
            self.library.pack(
                *(pointer(factor), ELEMENTS[factor.dtype], strides, *sizes, pointer(scale), pointer(parts[0, first:])),
                *(part_size, count, blocks, rows, k),
            )
        )

    def pack_parts(self, factor: Tensor, scale: Tensor, count: int) -> Tensor:
        n, s, o, m = factor.shape
        shape = (count, s, -(-n * o // TILE) * TILE, max(1, -(-m // 64)) * 64)
        parts = torch.full(shape, torch.nan, dtype=torch.bfloat16)
        self._pack(factor, scale, parts, 0, 1)
        return parts

    def pack_slices(self, factor: Tensor, scale: Tensor, parts: Tensor, first: int) -> None:
        assert parts.shape[3] == 64 and parts.is_contiguous()
        self._pack(factor, scale, parts, first, max(1, -(-factor.shape[3] // 64)))

    def tangent_tiles(
        self,
        parts: Tensor,
        p: Tensor,
        means: Tensor,
        unscale: Tensor,
        n: int,
        o: int,
        sample: int,
        straight: int,
        layers: list[int],
        result: str,
        entries: Tensor,
    ) -> Tensor:
        count, blocks, rows, k = parts.shape
        pairs = sum(positions**2 for positions in layers[::2]) if layers else 1
        assert p.shape == (pairs, p.shape[1], n - sample) and p.is_contiguous()
        sums = torch.full(
            (self.library.warps(self.hopper, ctypes.c_int64(self.blocks)),), torch.nan, dtype=torch.float64
        )
        sizes = (ctypes.c_int64 * len(layers))(*layers)
        self._check(
            self.library.tangent_tiles(
                *(self.hopper, ctypes.c_int64(self.blocks), count, RESULTS.index(result), pointer(parts)),
                *(ctypes.c_int64(rows), k, blocks, sizes, len(layers) // 2, n, o, pointer(p), sample, straight),
                *(ctypes.c_int64(p.shape[1]), pointer(means), pointer(sums), pointer(entries), pointer(unscale)),
            )
        )
        return sums if result in ("squares", "products") else sums[:0]

    def deviation_tiles(
        self,
        parts: Tensor,
        gram: Tensor,
        offsets: TileOffsets,
        n: int,
        o: int,
        sample: int,
        straight: int,
        result: str,
        entries: Tensor,
    ) -> Tensor:
        count, positions, rows, k = parts.shape
        p, pairs, factors, _ = offsets
        assert positions == 1 and gram.shape == (1, gram.shape[1], n - sample) and gram.is_contiguous()
        assert p.shape == (rows,) and pairs.shape == (o, rows, 2) and factors.shape == (3,)
        assert all(one.dtype == torch.float32 and one.is_contiguous() for one in (p, pairs, factors))
        hopper, blocks = self.hopper, ctypes.c_int64(self.blocks)
        sums = torch.full((self.library.warps(hopper, blocks),), torch.nan, dtype=torch.float64)
        self._check(
            self.library.deviation_tiles(
                *(hopper, blocks, count, RESULTS.index(result), pointer(parts), ctypes.c_int64(rows), k),
                *(n, o, pointer(gram), sample, straight, ctypes.c_int64(gram.shape[1])),
                *(pointer(p), pointer(pairs), pointer(factors), pointer(sums), pointer(entries)),
            )
        )
        return sums if result in ("squares", "products") else sums[:0]
