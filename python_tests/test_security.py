"""What SECURITY.md says of the package's modules: no pickle is loaded, and no text is run as code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "ahkernels").rglob("*.py"))
BESIDE = sorted(path for folder in ("experiments", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))
THAT_UNPICKLE = {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
OBJECTS_BETWEEN_RANKS = {
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
}


def unsafe(source: str) -> list[str]:
    """The imports and calls of a module that could load a pickle or run text as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in THAT_UNPICKLE]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            arguments = {one.arg: ast.unparse(one.value) for one in node.keywords}
            unpickles = name == "torch.load" and arguments.get("weights_only") != "True"
            unpickles |= arguments.get("allow_pickle", "False") != "False"
            unpickles |= name.rpartition(".")[2] in {"read_pickle", *OBJECTS_BETWEEN_RANKS}
            found += [name] * (unpickles or name in {"eval", "exec"})
    return found


def test_every_module_is_safe():
    found = {str(module.relative_to(ROOT)): unsafe(module.read_text(encoding="utf-8")) for module in PACKAGE}
    assert len(found) > 50
    assert {module: calls for module, calls in found.items() if calls} == {}


def test_no_script_loads_a_pickle_with_torch():
    found = {str(module.relative_to(ROOT)): unsafe(module.read_text(encoding="utf-8")) for module in BESIDE}
    assert len(found) > 50
    assert {module: calls for module, calls in found.items() if "torch.load" in calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pandas.read_pickle(path)",
        "dist.all_gather_object(every, one)",
        "eval(text)",
    ],
)
def test_what_is_unsafe_is_noticed(source):
    assert unsafe(source)


@pytest.mark.parametrize("source", ["torch.load(path, weights_only=True)", "np.load(path)", "model.eval()"])
def test_what_is_safe_passes(source):
    assert unsafe(source) == []
