"""The op tests again under each narrower instruction set that this processor has, and with AMX emulated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated_amx
import pytest

import ahkernels as ah

SELECTION = (
    "not plain and (gram or constant or scales or medium or workspace or ((moments or inner_products) and float32))"
)
OF_CENTERING = "not plain and (blocks_close or moments or (test_ops and (float32 or float64)))"
NARROWER = ah.build_info()["cpu_capability"][1:]
FILES = [("test_ops.py", SELECTION), ("../test_centering.py", OF_CENTERING)]

# An emulated instruction takes microseconds: these have every kind of tile, and few of them.
OF_AMX = (
    "not plain and not jacobian and not 300 and not many_numbers and not workspace and not thin and "
    "(((tangent_gram or two_kernels or sums_of_layers or (not_kept and 150)) and float32 and not given) or "
    "medium or high_precision or few_large or constant or extreme or different_scales)"
)
OF_CENTERING_WITH_AMX = (
    "not plain and (float32 and (test_ops or moments)) or "
    "(blocks_close and (20-9-False-1e-05 or 60-3-True-1e-05 or 200-1-False-1e-07))"
)


def run_tests(name, selection, environment):
    tests = Path(__file__).parent / name
    # Without pytest's handler of signals, which would come before that of the emulator.
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:faulthandler")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", selection, tests],
        cwd=tests.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr


@pytest.mark.parametrize(("name", "selection"), FILES)
@pytest.mark.parametrize("capability", NARROWER or ["portable"])
def test_ops_with(capability, name, selection):
    run_tests(name, selection, {**os.environ, "AHKERNELS_CPU_CAPABILITY": capability})


@pytest.fixture(scope="module")
def amx_emulator(tmp_path_factory):
    return emulated_amx.build(tmp_path_factory.mktemp("amx") / "libamx.so", "-fPIC", "-shared")


@pytest.mark.skipif(bool(emulated_amx.MISSING), reason=emulated_amx.MISSING)
@pytest.mark.parametrize(
    ("name", "selection"), [("test_ops.py", OF_AMX), ("../test_centering.py", OF_CENTERING_WITH_AMX)]
)
def test_ops_with_emulated_amx(amx_emulator, name, selection):
    run_tests(name, selection, emulated_amx.environment(amx_emulator))


def test_capability_in_use():
    code = "import ahkernels; print(ahkernels.build_info()['cpu_capability'])"
    environment = {**os.environ, "AHKERNELS_CPU_CAPABILITY": "portable"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert run.stdout.strip() == "['portable']"


def test_unknown_capability_is_an_error():
    environment = {**os.environ, "AHKERNELS_CPU_CAPABILITY": "sse9"}
    run = subprocess.run(
        [sys.executable, "-c", "import ahkernels; ahkernels.build_info()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert run.returncode != 0
    assert "AHKERNELS_CPU_CAPABILITY: expected amx, avx512bf16, avx512, avx2 or portable" in run.stderr
    assert "got sse9" in run.stderr
