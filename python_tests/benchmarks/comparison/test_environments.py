"""Virtual environments from pinned requirements."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.comparison import environments


def test_requirements_that_cannot_be_installed_are_a_reason(tmp_path: Path) -> None:
    assert environments.python_of((), tmp_path) == Path(sys.executable)
    with pytest.raises(environments.InstallationError, match="missing"):
        environments.python_of((str(tmp_path / "missing.whl"),), tmp_path)


def test_requirements_of_the_runners_torch_take_that_one(tmp_path: Path) -> None:
    assert environments.filled(("torch=={torch}", "jax{cuda}==1"))[0] == f"torch=={torch.__version__.split('+')[0]}"
    python = environments.python_of(("torch=={torch}",), tmp_path)
    assert environments.python_of(("torch=={torch}",), tmp_path) == python
    assert environments.versions(python, ["torch", "nothing"]) == {"torch": torch.__version__}
