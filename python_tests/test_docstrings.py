"""The examples in the docstrings: all of them run, and every public function and class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import ahkernels as ah

MODULES = ["ahkernels", *(found.name for found in pkgutil.walk_packages(ah.__path__, "ahkernels."))]
# What has no example of its own: results, which those of the functions that return them show, and what warns or types.
WITHOUT = {
    *("DegenerateKernelWarning", "Eigenpairs", "Estimate", "Explanation", "KernelRegression", "LayerExplanation"),
    *("LayerStatistic", "NonFiniteError", "Rule", "STATISTICS", "signal_propagation"),
}


@pytest.mark.parametrize("name", [name for name in MODULES if "._" not in name])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the files of examples go
    if name.startswith("ahkernels.integrations."):
        module = pytest.importorskip(name, exc_type=ImportError)  # of a package that the tests may lack
    else:
        module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(ah.__all__) - WITHOUT))
def test_public_names_have_an_example(name):
    assert ">>> " in (inspect.getdoc(getattr(ah, name)) or "")
