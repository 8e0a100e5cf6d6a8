"""Lets the tests import the comparison as benchmarks/compare.py does, and fake contenders as workers do."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# At the end of the path: both benchmarks and experiments have a package `common`, and tests of the latter import it.
sys.path += [str(HERE.parents[1] / "benchmarks"), str(HERE)]
