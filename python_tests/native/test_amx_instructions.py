"""The emulator of AMX that the kernels are tested with: what its instructions compute, and what it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulated_amx
import pytest

pytestmark = pytest.mark.skipif(bool(emulated_amx.MISSING), reason=emulated_amx.MISSING)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("amx") / "amx_instructions"
    return emulated_amx.build(target, str(Path(__file__).with_name("amx_instructions.cpp")))


def run(program, name):
    return subprocess.run([program, name], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("products of bf16", "32 0 0 0 0 2 16777218"),
        ("products of int8", "0 wrong"),
        ("part of a tile", "0 1 0 32 33 0 64 65 0 9 9 9"),
        ("configurations", "0 1 16 0 0 0"),
    ],
)
def test_what_instructions_do(program, name, printed):
    done = run(program, name)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, printed, "")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("palette 2", "ldtilecfg: the palette is neither 0 nor 1"),
        ("byte 2", "ldtilecfg: a reserved byte is not zero"),
        ("byte 15", "ldtilecfg: a reserved byte is not zero"),
        ("ninth tile", "ldtilecfg: a reserved byte is not zero"),
        ("last byte", "ldtilecfg: a reserved byte is not zero"),
        ("17 rows", "ldtilecfg: a tile has more than 16 rows"),
        ("65 bytes", "ldtilecfg: a tile has rows of more than 64 bytes"),
        ("rows without bytes", "ldtilecfg: a tile has rows without bytes, or bytes without rows"),
        ("bytes without rows", "ldtilecfg: a tile has rows without bytes, or bytes without rows"),
        ("load before configuration", "tileloadd: the tile registers are not set up"),
        ("zero before configuration", "tilezero: the tile registers are not set up"),
        ("store after release", "tilestored: the tile registers are not set up"),
        ("missing tile", "tileloadd: the configuration does not have this tile"),
        ("odd bytes", "tileloadd: rows are not whole numbers of 4 bytes"),
        ("same register", "tdpbssd: a register is named twice"),
        ("rows of sums", "tdpbssd: the shapes do not fit each other"),
        ("columns of sums", "tdpbf16ps: the shapes do not fit each other"),
        ("length of products", "tdpbf16ps: the shapes do not fit each other"),
        ("start row", "tileloadd: the start row lies beyond the tile"),
        ("left set up", "the tile registers of a thread were left set up"),
    ],
)
def test_what_a_processor_refuses(program, name, sentence):
    done = run(program, name)
    assert done.returncode != 0
    assert done.stderr == f"AMX emulator: {sentence}\n"
