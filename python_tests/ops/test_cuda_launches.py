"""The host code of the CUDA ops, on a stub of the runtime and the driver that keeps to their documented rules.

The source is as it is, but for `<<<...>>>`, which g++ cannot read, and for the names that the ops are registered by:
those of tensors without numbers, so that they can be called with sizes that no memory holds.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths

ROOT = Path(__file__).parents[2]
REPLACEMENTS = [
    (r"(\w+)<<<(.*?)>>>", r"stub::launch(\1, \2)"),
    (r"(STABLE_TORCH_LIBRARY\w+)\(ahkernels", r"\1(ahkernels_on_stub"),
    (r"\(ahkernels_on_stub, CUDA,", "(ahkernels_on_stub, Meta,"),
]
DEFINED = ["AHK_EMULATOR", "USE_CUDA", "TORCH_TARGET_VERSION=0x020b000000000000ULL"]
DEFINED += ["__CUDACC_VER_MAJOR__=13", "__CUDACC_VER_MINOR__=0", "__CUDA_ARCH_LIST__=800,900"]
RESULTS = {"squares": 0, "matrix": 1, "rows": 2, "products": 3}
# By the major number of the compute capability: the bytes of shared memory that a block may have. Of the cards with the
# same number, those with the least.
SHARED_BYTES = {8: 99 << 10, 9: 227 << 10, 10: 227 << 10, 12: 99 << 10}
PROCESSORS = 132
TILE = 128


@dataclass
class Launch:
    kernel: str
    blocks: int
    threads: int
    shared: int


@dataclass
class Device:
    """The ops on a device that does nothing."""

    library: ctypes.CDLL
    first_errors: tuple[str, ...] = ()  # of calls that are made once

    def become(self, major: int, *, failing: str = "", shared: int | None = None) -> None:
        shared = SHARED_BYTES[major] if shared is None else shared
        self.library.stub_set_device(major, PROCESSORS, shared, failing.encode())

    def calls(self, name: str) -> list[list[str]]:
        lines = [line.split() for line in self.library.stub_calls().decode().splitlines()]
        return [line[1:] for line in lines if line[0] == name]

    @property
    def launch(self) -> Launch:
        ((name, *sizes),) = self.calls("launch")
        return Launch(name, *map(int, sizes))

    @property
    def maps(self) -> list[tuple[int, ...]]:
        """Numbers along k, rows, and both of a box."""
        return [tuple(map(int, call)) for call in self.calls("map")]


def compile_ops(folder: Path) -> Path:
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for path in (folder / "csrc" / "cuda").iterdir():
        source = path.read_text()
        for pattern, replacement in REPLACEMENTS:
            source = re.sub(pattern, replacement, source)
        path.write_text(source)
    includes = [str(ROOT / "python_tests" / name) for name in ("cuda_stub", "emulator")]
    library = folder / "libops_on_stub.so"
    sources = [ROOT / "python_tests" / "cuda_stub" / "stub.cpp", *sorted((folder / "csrc" / "cuda").glob("*.cu"))]
    command = [
        *(*os.environ.get("CXX", "c++").split(), "-std=c++20", "-O0", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-w"),
        *(*(f"-D{name}" for name in DEFINED), *(f"-I{path}" for path in includes)),
        *(
            *(f"-isystem{path}" for path in include_paths()),
            f"-L{TORCH_LIB_PATH}",
            "-xc++",
            *map(str, sources),
            "-xnone",
        ),
        *("-lc10", "-ltorch", "-ltorch_cpu", "-o", str(library)),
    ]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    path = compile_ops(tmp_path_factory.mktemp("stub"))
    torch.ops.load_library(path)
    library = ctypes.CDLL(str(path))
    library.stub_calls.restype = ctypes.c_char_p
    device = Device(library)
    device.first_errors = tuple(
        error_of_first_launch(device, name) for name in ("cudaGetDriverEntryPointByVersion", "old")
    )
    return device


def error_of_first_launch(device, failing):
    device.become(9, failing=failing)
    with pytest.raises(RuntimeError) as error:
        tangent_tiles(pack_parts(30, 1, 10, 5, 2), 30, 10)
    return str(error.value)


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def pack_parts(n, s, o, m, count, dtype=torch.float32):
    return torch.ops.ahkernels_on_stub.pack_parts(empty(n, s, o, m, dtype=dtype), empty(dtype=torch.float64), count)


def pack_slices(parts, first, n, s, o, m):
    factor = empty(n, s, o, m)
    torch.ops.ahkernels_on_stub.pack_slices(factor, empty(dtype=torch.float64), parts, first)


def tangent_tiles(parts, n, o, result="squares", *, sample=0, rows=None, layers=(), straight=0, **changed):
    """All rows of K from `sample` on, or as many samples as `rows` says."""
    pairs = sum(positions**2 for positions in layers[::2]) if layers else 1
    rows = n - sample if rows is None else rows
    heights = {"squares": 0, "matrix": n * o}
    height = heights.get(result, min(-(-(sample + rows) * o // TILE) * TILE, n * o) - sample * o)
    arguments = {
        "p": empty(pairs, rows, n - sample),
        "means": empty(2, parts.shape[2]) if result != "matrix" else empty(0),
        "unscale": empty(2 if result == "matrix" else 0, dtype=torch.float64),
        "entries": empty(height, n * o) if height else empty(0),
    } | changed
    tensors = [arguments[name] for name in ("p", "means", "unscale")]
    numbers = (n, o, sample, straight, list(layers))
    return torch.ops.ahkernels_on_stub.tangent_tiles(parts, *tensors, *numbers, result, arguments["entries"])


def deviation_tiles(parts, n, o, result="squares", straight=0, **changed):
    rows = parts.shape[2]
    arguments = {
        "gram": empty(1, n, n),
        "p": empty(rows),
        "pairs": empty(o, rows, 2),
        "factors": empty(3),
        "entries": empty(0) if result == "squares" else empty(n * o, n * o),
    } | changed
    tensors = [arguments[name] for name in ("gram", "p", "pairs", "factors")]
    return torch.ops.ahkernels_on_stub.deviation_tiles(parts, *tensors, n, o, 0, straight, result, arguments["entries"])


# n, s, o, m: one sample, ragged and whole tiles, k of one slice and of many.
@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (30, 1, 10, 70), (64, 1, 2, 64), (500, 1, 7, 4000)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("major", SHARED_BYTES)
def test_launches(device, major, count, shape):
    n, s, o, m = shape
    device.become(major)
    parts = pack_parts(n, s, o, m, count)
    tiles_a_side = -(-n * o // TILE)
    assert parts.shape == (count, s, tiles_a_side * TILE, max(64, -(-m // 64) * 64))
    assert parts.dtype == torch.bfloat16
    assert device.launch.blocks == min(-(-parts[0].numel() // 2 // 256), 32 * PROCESSORS)

    # Boxes of a turn's rows and of a tile's columns, made in any order.
    check_tiles(device, major, parts, n, o, [], [64 if count == 3 else 128, 128])


@pytest.mark.parametrize("major", [8, 9])
def test_launches_for_sums(device, major):
    """A layer with 40 positions and one with 3 slices along k, in boxes of 64 rows and of the columns of a tile."""
    n, o = 30, 10
    device.become(major)
    parts = empty(2, 43, 384, 64, dtype=torch.bfloat16)
    pack_slices(parts, 0, n, 40, o, 6)
    assert device.launch.blocks == min(40 * 384 * 64 // 2 // 256, 32 * PROCESSORS)
    device.become(major)
    pack_slices(parts, 40, n, 1, o, 130)
    assert device.launch.blocks == 3 * 384 * 64 // 2 // 256
    check_tiles(device, major, parts, n, o, [40, 1, 1, 3], [64, 128])


@pytest.mark.parametrize("major", [8, 9])
@pytest.mark.parametrize(("count", "straight", "promoted"), [(1, 128, 0), (1, 127, 1), (2, 64, 1), (3, 4096, 1)])
def test_promoted_sums(device, major, count, straight, promoted):
    """Where k is longer than sums in tensor cores may be, and always with three parts."""
    for parts, layers in (
        (pack_parts(5, 1, 2, 128, count), []),
        (empty(count, 3, 128, 64, dtype=torch.bfloat16), [1, 1, 1, 2]),
    ):
        device.become(major)
        tangent_tiles(parts, 5, 2, straight=straight, layers=layers)
        assert f"tilesILi{count}ELb{promoted}ELb{int(bool(layers))}E" in device.launch.kernel


def check_tiles(device, major, parts, n, o, layers, heights):
    count, blocks, padded_rows, k = parts.shape
    tiles_a_side = -(-n * o // TILE)
    tiles = tiles_a_side * (tiles_a_side + 1) // 2
    hopper = major == 9  # other devices have no products of warpgroups, or others than Hopper's
    for result, number in RESULTS.items():
        device.become(major)
        sums = tangent_tiles(parts, n, o, result, layers=layers)
        family = f"5wgmma5tilesILi{count}E" if hopper else f"3mma5tilesILi{count}E"
        assert family in device.launch.kernel
        assert f"ELb1ELb{int(bool(layers))}E" in device.launch.kernel
        assert f"ResultE{number}ELb0E" in device.launch.kernel
        assert device.launch.blocks == min(tiles, PROCESSORS if hopper else 2 * PROCESSORS)
        warps = device.launch.blocks * 8 if result in ("squares", "products") else 0
        assert (sums.shape, sums.dtype) == ((warps,), torch.float64)
        heights = heights if hopper else []
        assert sorted(device.maps) == [(k, count * blocks * padded_rows, 64, height) for height in heights]


@pytest.mark.parametrize("result", ["squares", "rows", "products"])
@pytest.mark.parametrize("major", [8, 9])
def test_panels(device, major, result):
    """Some rows of K: the last panel, and one before it."""
    n, o = 600, 3
    parts = pack_parts(n, 1, o, 20, 2)
    for sample, rows, tiles in [(128, 128, 12 + 11 + 10), (512, 88, 3 + 2 + 1)]:
        device.become(major)
        tangent_tiles(parts, n, o, result, sample=sample, rows=rows)
        assert device.launch.blocks == tiles


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("major", SHARED_BYTES)
def test_launches_for_near_constant_kernels(device, major, count):
    parts = pack_parts(300, 1, 2, 70, count)
    for result in ("squares", "rows", "products"):
        device.become(major)
        sums = deviation_tiles(parts, 300, 2, result)
        family = f"5wgmma5tilesILi{count}E" if major == 9 else f"3mma5tilesILi{count}E"
        assert family in device.launch.kernel
        assert f"Lb1ELb0ELNS0_6ResultE{RESULTS[result]}ELb1E" in device.launch.kernel
        assert device.launch.blocks == 5 + 4 + 3 + 2 + 1
        assert sums.shape == ((0,) if result == "rows" else (device.launch.blocks * 8,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factors_of_16_bits(device, dtype):
    device.become(9)
    assert pack_parts(5, 1, 2, 3, 1, dtype).dtype == torch.bfloat16


# ---- sizes at the limits


@pytest.mark.parametrize("count", [1, 3])
def test_most_rows(device, count):
    device.become(9)
    rows = (2**31 - 1) // (count * TILE) * TILE
    assert pack_parts(rows, 1, 1, 64, count).shape == (count, 1, rows, 64)
    with pytest.raises(RuntimeError, match=r"pack_parts: factor: expected fewer than 2\^31 rows n \* s \* o \* count"):
        pack_parts(rows + 1, 1, 1, 64, count)


@pytest.mark.parametrize("shape", [(2**24, 1, 128, 64), (300, 2**23, 1, 64), (3, 1, 1, 2**31 - 63)], ids=str)
def test_too_many_rows_or_numbers(device, shape):
    device.become(9)
    with pytest.raises(RuntimeError, match=r"pack_parts: factor: expected fewer than 2\^31 rows"):
        pack_parts(*shape, 1)


def test_tiles_of_the_most_rows(device):
    """Rows near 2^31 in a single panel of 128 samples, and the longest k that a tensor copy may step over."""
    device.become(9)
    n = 2**31 - TILE
    parts = empty(1, 1, n, 64, dtype=torch.bfloat16)
    tangent_tiles(parts, n, 1, sample=n - TILE, rows=TILE)
    assert device.maps[0] == (64, n, 64, 128)
    assert device.launch.blocks == 1
    device.become(9)
    tangent_tiles(empty(1, 1, TILE, 2**31 - 64, dtype=torch.bfloat16), 2, 1)
    assert device.maps[0] == (2**31 - 64, TILE, 64, 128)


def test_most_numbers_of_the_forward_gram(device):
    device.become(9)
    n = 2**22
    parts = pack_parts(n, 1, 1, 64, 1)
    tangent_tiles(parts, n, 1, sample=n - 2**14, rows=2**14)
    with pytest.raises(RuntimeError, match=r"tangent_tiles: p: expected fewer than 2\^30 numbers, got 1073741824$"):
        tangent_tiles(parts, n, 1, rows=256)


def test_nothing_to_do(device):
    device.become(9)
    for shape in [(0, 1, 2, 3), (4, 1, 0, 3), (4, 0, 2, 3)]:
        with pytest.raises(RuntimeError, match="pack_parts: factor: expected at least one row"):
            pack_parts(*shape, 1)
    with pytest.raises(RuntimeError, match=r"tangent_tiles: p: expected at least one row, got shape \[1, 0, 300\]"):
        tangent_tiles(pack_parts(300, 1, 2, 3, 1), 300, 2, rows=0)


# ---- arguments


WRONG = {
    "parts": [
        empty(2, 1, 384, 64),
        empty(4, 1, 384, 64, dtype=torch.bfloat16),
        empty(2, 384, 64, dtype=torch.bfloat16),
    ],
    "p": [empty(1, 30, 29), empty(2, 30, 30), empty(1, 30, 30, dtype=torch.float64), empty(1, 30, 60)[..., ::2]],
    "means": [empty(2, 300), empty(384, 2), empty(2, 384, dtype=torch.float64)],
    "entries": [empty(300, 299), empty(299, 300), empty(300, 300, dtype=torch.float64)],
}
WRONG_CASES = [(name, which) for name, those in WRONG.items() for which in range(len(those))]


@pytest.mark.parametrize(("name", "which"), WRONG_CASES)
def test_wrong_arguments(device, name, which):
    device.become(9)
    changed = {name: WRONG[name][which]}
    parts = changed.pop("parts", empty(2, 1, 384, 64, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match=f"tangent_tiles: {name}: expected"):
        tangent_tiles(parts, 30, 10, "products", p=changed.pop("p", empty(1, 30, 30)), **changed)
    assert device.calls("launch") == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gram", empty(1, 1, 30, 29)),
        ("p", empty(300)),
        ("p", empty(384, dtype=torch.float64)),
        ("pairs", empty(384, 10, 2)),
        ("pairs", empty(10, 2, 384).transpose(1, 2)),
        ("factors", empty(2)),
        ("entries", empty(300, 299)),
    ],
)
def test_wrong_arguments_for_near_constant_kernels(device, name, wrong):
    device.become(9)
    parts = empty(2, 1, 384, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"deviation_tiles: {'p' if name == 'gram' else name}: expected"):
        deviation_tiles(parts, 30, 10, "products", **{name: wrong})
    assert device.calls("launch") == []


def test_near_constant_kernels_that_have_no_tiles(device):
    device.become(9)
    with pytest.raises(RuntimeError, match="deviation_tiles: parts: expected 1 blocks, got 2"):
        deviation_tiles(pack_parts(30, 2, 10, 5, 1), 30, 10)
    with pytest.raises(RuntimeError, match="result: expected squares, rows or products, got matrix"):
        deviation_tiles(pack_parts(30, 1, 10, 5, 1), 30, 10, "matrix")
    most = pack_parts(2**9 - 1, 1, 2**10, 5, 1)
    deviation_tiles(most, 2**9 - 1, 2**10)
    with pytest.raises(RuntimeError, match=r"pairs: expected fewer than 2\^29 pairs, got 536870912"):
        deviation_tiles(pack_parts(2**9, 1, 2**10, 5, 1), 2**9, 2**10)


def test_wrong_words_and_numbers(device):
    device.become(9)
    parts = pack_parts(30, 1, 10, 5, 1)
    with pytest.raises(RuntimeError, match="result: expected squares, matrix, rows or products, got cubes"):
        tangent_tiles(parts, 30, 10, "cubes")
    with pytest.raises(RuntimeError, match="unscale: expected two float64 numbers"):
        tangent_tiles(parts, 30, 10, "matrix", unscale=empty(2))
    with pytest.raises(RuntimeError, match="count: expected 1, 2 or 3, got 4"):
        pack_parts(3, 1, 2, 5, 4)
    with pytest.raises(RuntimeError, match="factor: expected float32, float16 or bfloat16 numbers"):
        pack_parts(3, 1, 2, 5, 1, torch.float64)


def test_wrong_sums(device):
    """Sizes of layers that the parts do not have, and slices where there is no room."""
    device.become(9)
    parts = empty(1, 5, 128, 64, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="tangent_tiles: parts: expected 6 blocks, got 5 of 64 numbers"):
        tangent_tiles(parts, 5, 2, layers=[2, 1, 1, 4])
    with pytest.raises(RuntimeError, match="tangent_tiles: parts: expected 1 blocks, got 5"):
        tangent_tiles(parts, 5, 2)
    with pytest.raises(
        RuntimeError, match="layers: expected positions and slices of up to 256 layers, got 514 numbers"
    ):
        tangent_tiles(parts, 5, 2, layers=[1] * 514)
    with pytest.raises(RuntimeError, match="pack_slices: first: expected room for 4 slices, got 2 of 5"):
        pack_slices(parts, 2, 5, 2, 2, 65)
    for shape in [(4, 5, 128, 64), (1, 5, 256, 64), (1, 5, 128, 128)]:
        with pytest.raises(RuntimeError, match="pack_slices: parts: expected a contiguous bfloat16 tensor"):
            pack_slices(empty(*shape, dtype=torch.bfloat16), 0, 5, 2, 2, 65)
    assert device.calls("launch") == []


# ---- calls that fail


@pytest.mark.parametrize("call", ["cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cuTensorMapEncodeTiled", "launch"])
def test_failing_calls_are_errors(device, call):
    device.become(9)
    parts = pack_parts(30, 1, 10, 5, 2)
    device.become(9, failing=call)
    with pytest.raises(RuntimeError, match=r"(CUDA|cuTensorMapEncodeTiled failed with) error 719"):
        tangent_tiles(parts, 30, 10)


def test_drivers_that_cannot_encode_are_errors(device):
    failed, lacking = device.first_errors
    assert "CUDA error 719" in failed
    assert "the CUDA driver lacks cuTensorMapEncodeTiled" in lacking


@pytest.mark.parametrize("major", [8, 9])
def test_too_little_shared_memory_is_an_error(device, major):
    device.become(major)
    parts = pack_parts(30, 1, 10, 5, 3)
    device.become(major, shared=64 << 10)
    with pytest.raises(RuntimeError, match="CUDA error 1 "):
        tangent_tiles(parts, 30, 10)


# ---- the stub itself, beside the driver's manual


MAP = {"address": 256, "sizes": (64, 256), "stride": 128, "box": (64, 128), "steps": (1, 1), "swizzle": 3}


@pytest.mark.parametrize(
    "changed",
    [
        {"address": 264},
        {"sizes": (64, 0)},
        {"sizes": (64, 2**32 + 1)},
        {"stride": 136},
        {"stride": 112},
        {"stride": 2**40},
        {"box": (64, 257)},
        {"box": (64, 0)},
        {"box": (128, 128)},
        {"box": (4, 128)},
        {"steps": (1, 9)},
        {"steps": (0, 1)},
        {"swizzle": 0},
    ],
    ids=str,
)
def test_stub_refuses_what_the_driver_refuses(device, changed):
    device.become(9)

    def encode(address, sizes, stride, box, steps, swizzle):
        tensor = (ctypes.c_char * 256)()
        aligned = ctypes.addressof(tensor) + 64 - ctypes.addressof(tensor) % 64
        arrays = [(ctypes.c_uint64 * 2)(*sizes), (ctypes.c_uint64 * 1)(stride)]
        arrays += [(ctypes.c_uint32 * 2)(*box), (ctypes.c_uint32 * 2)(*steps)]
        return device.library.stub_encode(ctypes.c_void_p(aligned), ctypes.c_void_p(address), *arrays, swizzle)

    assert encode(**MAP) == 0
    assert encode(**(MAP | changed)) == 1
