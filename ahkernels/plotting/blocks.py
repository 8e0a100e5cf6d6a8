"""Blocks of a network, from the names of its layers: "blocks.7.attn.qkv" is in block 7 of "blocks"."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_BLOCKS = 32  # of one level; with more, a level above is taken if there is one
_LONGEST_LIST = 16  # characters of the names of layers that stand beside one another

_NUMBER = re.compile(r"[._]*(\d+)$")


@dataclass(frozen=True)
class Block:
    """Layers that follow one another.

    Attributes:
        family: The name that blocks of one kind share, such as "layer3" for "layer3.0" and "layer3.1"; the name of the
            layers themselves where they are in no numbered block.
        number: The number of the block in its family, None where it has none.
        start: Index of its first layer, from 0.
        stop: Index behind its last one.
    """

    family: str
    number: int | None
    start: int
    stop: int

    @property
    def middle(self) -> float:
        """Its place on an axis where the layers are at 1, 2, ..."""
        return (self.start + 1 + self.stop) / 2


def blocks_of(layers: Sequence[str]) -> list[Block]:
    """Divides layers in forward order into blocks, each in one piece.

    A name such as "layers.2.blocks.17.mlp.fc1" has several numbers, each of a level. Blocks are those of the deepest
    level on which a block has two layers or more on average, if they are not too many. In a network without such blocks
    each layer with a number is one by itself.

    Args:
        layers: Distinct names.

    Returns:
        The blocks, which have all layers.
    """
    levels = [_keys(layers, level) for level in range(1, max((name.count(".") for name in layers), default=0) + 1)]
    grouped = [keys for keys in levels if 2 <= _count(keys) <= sum(key is not None for key in keys) / 2]
    few = [keys for keys in grouped if _count(keys) <= _MOST_BLOCKS]
    keys = few[-1] if few else grouped[0] if grouped else [_prefix(name.split("."), 1) for name in layers]
    runs = [
        (key, [index for index, _ in members])
        for key, members in itertools.groupby(enumerate(keys), key=lambda member: member[1])
    ]
    found = []
    for key, run in runs:
        start, stop = run[0], run[-1] + 1
        if key is None:
            found += _without_number(layers, start, stop)
        else:
            number = _NUMBER.search(key)
            assert number is not None
            found.append(Block(_family(key[: number.start()]), int(number[1]), start, stop))
    return found


def shared_path(names: Sequence[str]) -> str:
    """The module that all layers of these names are in; "" for none."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _keys(layers: Sequence[str], level: int) -> list[str | None]:
    """The block of each layer on a level, such as "layer3.0" on level 2; None where a layer is in none."""
    found = [_prefix(name.split(".")[:-1], level) for name in layers]
    known = set(found)
    return [name if name in known else key for name, key in zip(layers, found, strict=True)]


def _prefix(components: Sequence[str], level: int) -> str | None:
    """The components down to the numbered one of a level; None if there are fewer."""
    numbered = [index for index, component in enumerate(components) if _NUMBER.search(component)]
    return ".".join(components[: numbered[level - 1] + 1]) if len(numbered) >= level else None


def _count(keys: Sequence[str | None]) -> int:
    return len({key for key in keys if key is not None})


def _family(path: str) -> str:
    """A path down to its last numbered component, if it has some: "layers.2" for "layers.2.blocks"."""
    components = path.split(".")
    numbered = [index for index, component in enumerate(components) if _NUMBER.search(component)]
    return ".".join(components[: numbered[-1] + 1] if numbered else components)


def _without_number(layers: Sequence[str], start: int, stop: int) -> list[Block]:
    """Blocks of layers that are in no numbered block: those of one module above together, all others together."""

    def above(index: int) -> str | None:
        return _prefix(layers[index].split(".")[:-1], 1)

    runs = [(key, list(members)) for key, members in itertools.groupby(range(start, stop), key=above)]
    return [
        Block(key or _common_name([layers[index] for index in run]), None, run[0], run[-1] + 1) for key, run in runs
    ]


def _common_name(names: Sequence[str]) -> str:
    """The module that layers share; otherwise the modules that they are in, or the first of them where that is long."""
    modules = list(dict.fromkeys(name.partition(".")[0] for name in names))
    listed = ", ".join(modules)
    return shared_path(names) or (listed if len(listed) <= _LONGEST_LIST else f"{modules[0]}, …")
