"""Values on the command line, refused with a sentence that says what was expected. The standard library is enough."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A number above 0, whole for `int`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            noun = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"expected a {noun} above 0, got {text!r}")
        return value

    return parse


def file(text: str) -> Path:
    """A path at which there is a file, or can be one."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected the path of a file, got the folder {text!r}")
    folder(str(Path(text).parent))
    return Path(text)


def folder(text: str) -> Path:
    """A path at which there is a folder, or can be one."""
    for path in (Path(text), *Path(text).parents):
        if path.exists():
            if not path.is_dir():
                raise argparse.ArgumentTypeError(f"expected the path of a folder, got {text!r}: {path} is none")
            break
    return Path(text)


def stored(parser: argparse.ArgumentParser, option: str, path: Path, key: str) -> Any:
    """The record in a JSON file that has this key; another file ends the process with a sentence."""
    try:
        found = json.loads(path.read_text())
        found[key]
    except (OSError, ValueError, KeyError, TypeError) as reason:
        parser.error(
            f"argument {option}: expected a JSON file that this script has written, got {path} "
            f"({type(reason).__name__}: {reason})"
        )
    return found
