"""A small task, a pool of workers with short limits, and rows by the name of their contender."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.comparison.contenders import Contender
from benchmarks.comparison.measuring import Pool, Settings
from benchmarks.comparison.tasks import Task
from benchmarks.comparison.worker import WARM_UP

TASK = Task("layer_kernel", n=WARM_UP + 1, width=16, depth=2, outputs=2)
SETTINGS = Settings(1, 1 << 30, call_limit=1.0, rounds=3, seconds_of_rounds=0.5)


def pool(contenders: list[Contender]) -> Pool:
    return Pool({one.name: Path(sys.executable) for one in contenders}, SETTINGS)


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in record["rows"] if one["contender"] == name)
