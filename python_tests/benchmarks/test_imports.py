"""Every module of the benchmarks can be imported from the repository root, and data flows one way through them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if ".cache" not in path.parts  # the environments of `compare`
}
WITHOUT_LIBRARY = "benchmarks.comparison.contenders._jax_network"  # imports jax, which only its contender has


def parts_imported_by(part: str) -> set[str]:
    """The parts of `benchmarks`, packages and scripts, that a part imports anywhere, also inside functions."""
    found = set()
    for name, path in MODULES.items():
        if name.split(".")[1:2] == [part]:
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{name}" for name in names]
                found |= {name.split(".")[1] for name in names if name.startswith("benchmarks.")}
    return found


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # in torch.compile's own modules
@pytest.mark.parametrize("name", [name for name in MODULES if name != WITHOUT_LIBRARY])
def test_module_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize(
    ("part", "below"),
    [("common", {"common"}), ("comparison", {"common", "comparison"}), ("gpu", {"common", "gpu"})],
)
def test_part_imports_only_what_is_below_it(part: str, below: set[str]) -> None:
    assert parts_imported_by(part) == below


def test_the_run_on_a_gpu_begins_without_the_package_that_it_builds() -> None:
    code = "import sys, benchmarks.run_on_gpu; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"ahkernels", "torch"} & set(done.stdout.split())
