"""The JSON file of a run: written whole after every task, so that an interruption loses one task at most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import json_file

Record = dict[str, Any]


class MismatchError(ValueError):
    """The file holds results of another configuration; the text says which differ."""


class Store:
    """Results, by name of the task and of the sweep.

    Args:
        path: The file; None to keep nothing.
        head: What does not come from tasks: device, configuration, machine, ...
        keep: Whether results in the file stay, which must then be of the same configuration.
    """

    def __init__(self, path: Path | None, head: Record, keep: bool) -> None:
        self.path = path
        self.record: Record = {**head, "tasks": [], "sweeps": []}
        if path is not None and keep and path.exists():
            self._take(json.loads(path.read_text()))

    def task(self, name: str) -> Record | None:
        return next((one for one in self.record["tasks"] if one["name"] == name), None)

    def sweep(self, name: str) -> Record | None:
        return next((one for one in self.record["sweeps"] if one["name"] == name), None)

    def put(self, kind: str, record: Record, order: list[str]) -> None:
        """Add or replace a record of "tasks" or "sweeps", kept in this order of names."""
        others = [one for one in self.record[kind] if one["name"] != record["name"]]
        self.record[kind] = sorted([*others, record], key=lambda one: order.index(one["name"]))
        self.write()

    def write(self) -> None:
        if self.path is not None:
            json_file.write(self.path, self.record)

    def _take(self, stored: Record) -> None:
        there, here = stored["configuration"], self.record["configuration"]
        differing = [key for key in here if there.get(key) != here[key]]
        if differing:
            listed = "; ".join(f"{key}: {there.get(key)} there, {here[key]} now" for key in differing)
            raise MismatchError(f"{self.path} holds results of another configuration ({listed})")
        self.record["tasks"], self.record["sweeps"] = stored["tasks"], stored["sweeps"]
        self.record["seconds"] = stored.get("seconds", 0) + self.record.get("seconds", 0)
        self.record["contenders"] = stored["contenders"] | self.record["contenders"]
        for kind, rate in stored["ceilings"].items():  # the best that any run has seen
            self.record["ceilings"][kind] = max(rate, self.record["ceilings"].get(kind, 0))
