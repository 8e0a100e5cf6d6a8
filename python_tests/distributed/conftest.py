"""One pool of processes for all tests of a session."""

from __future__ import annotations

import pytest

from python_tests.distributed.cases import SHARDS
from python_tests.distributed.ranks import ranks_of


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    with ranks_of(max(SHARDS), tmp_path_factory.mktemp("ranks")) as pool:
        yield pool
