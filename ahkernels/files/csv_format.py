"""Results as CSV in long form: a line for each step, centering and layer.

The columns are "step" and "metrics/{name}", which histories alone have, then "centering" and "layer", one for each
statistic, what else a report says, and the digest. Numbers read back exactly. A cell is empty where there is no such
number.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ahkernels.files.csv_table import from_csv, to_csv
from ahkernels.files.numbers import from_json_number, to_json_number

_METRICS = "metrics/"
_EMPTY: dict[str, Any] = {"measurements": []}
_BEFORE, _AFTER = ("centering", "layer", "kind"), ("n", "outputs", "precision", "certificate", "certificate_calls_ago")


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes what `to_dict` of a report or of a history gave."""
    file.write(to_csv(*table(content)))


def table(content: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns, and {column: value} for each line; a line lacks the columns that it has no value for."""
    measurements = content.get("measurements", [{"reports": {"": content}}])
    lines = [line for one in measurements for line in _lines(one)]
    metrics = dict.fromkeys(name for line in lines for name in line if name.startswith(_METRICS))
    every = dict.fromkeys(name for line in lines for name in line)
    statistics = [name for name in every if name not in ("step", *metrics, *_BEFORE, *_AFTER)]
    after = [name for name in _AFTER if name in every or not lines]
    steps = ["step"] if "measurements" in content else []
    return [*steps, *metrics, *_BEFORE, *statistics, *after], lines


def _lines(measurement: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    steps = {"step": measurement["step"]} if "step" in measurement else {}
    metrics = {f"{_METRICS}{name}": from_json_number(one) for name, one in measurement.get("metrics", {}).items()}
    for report in measurement["reports"].values():
        certificate = report["certificate"]
        for index, layer in enumerate(report["layers"]):
            line = {**steps, **metrics, "centering": report["centering"], "layer": layer}
            line["kind"] = report["kinds"][index]
            line |= {name: from_json_number(values[index]) for name, values in report["statistics"].items()}
            line |= {"n": report["n"], "outputs": json.dumps(report["outputs"]), "precision": report["precision"]}
            if certificate is not None:
                if layer in certificate["differences"]:
                    line["certificate"] = from_json_number(certificate["differences"][layer])
                line["certificate_calls_ago"] = certificate["calls_ago"]
            yield line


def read(file: BinaryIO) -> dict[str, Any]:
    """Reads what `to_dict` had given before it was written.

    Raises:
        ValueError: For a table with other columns, and for one that has changed since it was written.
    """
    columns, lines = from_csv(file.read())
    if not {*_BEFORE, *_AFTER[:3]} <= set(columns):
        raise ValueError(f"expected the columns {', '.join((*_BEFORE, *_AFTER[:3]))} and others, got {columns}")
    if not lines and columns != table(_EMPTY)[0]:
        raise ValueError("expected lines below the names of the columns, got none")
    if "step" not in columns:
        return _report(lines)
    return {
        "measurements": [
            {
                "step": int(step),
                "metrics": _metrics(of_step[0]),
                "reports": {
                    centering: _report(list(of_report))
                    for centering, of_report in itertools.groupby(of_step, lambda line: line["centering"])
                },
            }
            for step, of_step in (
                (step, list(some)) for step, some in itertools.groupby(lines, lambda line: line["step"])
            )
        ]
    }


def _metrics(line: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(_METRICS): to_json_number(float(cell))
        for name, cell in line.items()
        if name.startswith(_METRICS) and cell
    }


def _report(lines: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    first = lines[0]
    known = {"step", *_BEFORE, *_AFTER}
    statistics = [name for name, cell in first.items() if name not in known and not name.startswith(_METRICS) and cell]
    certificate = None
    if first.get("certificate_calls_ago"):
        differences = {
            line["layer"]: to_json_number(float(line["certificate"])) for line in lines if line["certificate"]
        }
        certificate = {"differences": differences, "calls_ago": int(first["certificate_calls_ago"])}
    return {
        "layers": [line["layer"] for line in lines],
        "kinds": [line["kind"] for line in lines],
        "n": int(first["n"]),
        "outputs": json.loads(first["outputs"]),
        "precision": first["precision"],
        "centering": first["centering"],
        "certificate": certificate,
        "statistics": {name: [to_json_number(float(line[name])) for line in lines] for name in statistics},
    }
