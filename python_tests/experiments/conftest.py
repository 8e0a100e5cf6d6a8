"""Runs the tests of the experiments on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These networks are tiny: threads would only wait for each other, long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the study of a test module leaves at its TINY sizes; no test may change it."""
    folder = tmp_path_factory.mktemp("tiny")
    assert request.module.STUDY.main([*request.module.TINY, "--output", str(folder)]) == 0
    return folder
