"""The op tests again under each narrower instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ahkernels as ah

SELECTION = (
    "not plain and (gram or constant or scales or medium or workspace or ((moments or inner_products) and float32))"
)
OF_CENTERING = "not plain and (blocks_close or moments or (test_ops and (float32 or float64)))"
NARROWER = ah.build_info()["cpu_capability"][1:]


@pytest.mark.parametrize(("name", "selection"), [("test_ops.py", SELECTION), ("../test_centering.py", OF_CENTERING)])
@pytest.mark.parametrize("capability", NARROWER or ["portable"])
def test_ops_with(capability, name, selection):
    environment = {**os.environ, "AHKERNELS_CPU_CAPABILITY": capability}
    tests = Path(__file__).parent / name
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection, tests],
        cwd=tests.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]


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
