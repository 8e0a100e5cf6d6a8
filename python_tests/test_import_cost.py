"""`import ahkernels` loads nothing heavy beside torch: scipy's parts and optional packages come when they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTED = "import sys, torch; before = set(sys.modules); import ahkernels; print(*(set(sys.modules) - before))"


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that `import ahkernels` loads and torch does not."""
    done = subprocess.run([sys.executable, "-c", LISTED], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_only_these_packages_are_loaded(loaded):
    packages = {name.partition(".")[0] for name in loaded if not name.startswith("_")} - sys.stdlib_module_names
    assert packages - {"cython_runtime"} <= {"ahkernels", "numpy", "scipy", "torch", "tqdm"}


def test_no_part_of_scipy_is_loaded(loaded):
    public = {name for name in loaded if name.startswith("scipy.") and not name.startswith("scipy._")}
    assert public <= {"scipy.version"}


def test_no_compiler_of_torch_is_loaded(loaded):
    assert not {name for name in loaded if name.startswith(("torch._dynamo", "torch._inductor", "torch.fx"))}
