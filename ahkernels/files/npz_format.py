"""Results as npz: arrays that numpy opens, and beside them, as JSON, all that is no table of numbers.

A history has "step" [T], "metrics/{name}" [T] and "{centering}/{statistic}" [T, L], with nan where a step lacks one. A
report has "{statistic}" [L]. "about" has the rest, and "digest" a digest of all of them.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ahkernels.files.digest import DIGEST, digest_of, require_digest
from ahkernels.files.numbers import from_json_number, to_json_number


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes what `to_dict` of a report or of a history gave."""
    about: dict[str, Any] = copy.deepcopy(dict(content))
    arrays: dict[str, NDArray[Any]] = {}
    if "measurements" not in about:
        arrays |= {name: _array(values) for name, values in about["statistics"].items()}
        about["statistics"] = list(about["statistics"])
    else:
        measurements = about["measurements"]
        arrays["step"] = np.array([one["step"] for one in measurements], dtype=np.int64)
        metrics = dict.fromkeys(name for one in measurements for name in one["metrics"])
        for name in metrics:
            arrays[f"metrics/{name}"] = _array([one["metrics"].get(name) for one in measurements])
        for row, one in enumerate(measurements):
            one["metrics"] = list(one["metrics"])
            for centering, report in one["reports"].items():
                for name, values in report["statistics"].items():
                    empty = np.full((len(measurements), len(values)), np.nan)
                    arrays.setdefault(f"{centering}/{name}", empty)[row] = _array(values)
                report["statistics"] = list(report["statistics"])
    # In memory first, since savez seeks in its file.
    whole = io.BytesIO()
    arrays["about"] = np.array(json.dumps(about))
    arrays[DIGEST] = np.array(digest_of(_parts(arrays)))
    np.savez_compressed(whole, allow_pickle=False, **arrays)
    file.write(whole.getvalue())


def read(file: BinaryIO) -> dict[str, Any]:
    """Reads what `to_dict` had given before it was written.

    Raises:
        ValueError: For another archive, and for one that has changed since it was written.
    """
    with np.load(io.BytesIO(file.read()), allow_pickle=False) as archive:
        tables = {name: archive[name] for name in archive.files}  # each is read once
    if "about" not in tables:
        raise ValueError(f'expected an array "about", got {list(tables)}')
    found = tables.pop(DIGEST, None)
    require_digest(None if found is None else str(found), _parts(tables))
    content: dict[str, Any] = json.loads(str(tables["about"]))
    if "measurements" not in content:
        content["statistics"] = {name: _list(tables[name]) for name in content["statistics"]}
        return content
    for row, one in enumerate(content["measurements"]):
        one["metrics"] = {name: to_json_number(float(tables[f"metrics/{name}"][row])) for name in one["metrics"]}
        for centering, report in one["reports"].items():
            report["statistics"] = {name: _list(tables[f"{centering}/{name}"][row]) for name in report["statistics"]}
    return content


def _parts(arrays: Mapping[str, NDArray[Any]]) -> Iterator[str | bytes]:
    """All that arrays are, by their names."""
    for name in sorted(arrays):
        yield from (name, f"{arrays[name].dtype.str} {arrays[name].shape}", arrays[name].tobytes())


def _array(values: list[Any]) -> NDArray[np.float64]:
    return np.array([from_json_number(one) for one in values], dtype=np.float64)


def _list(array: NDArray[np.float64]) -> list[Any]:
    return [to_json_number(one) for one in array.astype(np.float64).tolist()]
