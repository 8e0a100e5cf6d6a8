"""Kinds of layers in pictures: a colour and a marker for each, the same for every network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ahkernels.plotting.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION


@dataclass(frozen=True)
class Kind:
    """Layers that look alike in a picture.

    Attributes:
        label: What they are called in its legend.
        colour: Their colour.
        marker: Their marker.
        layers: Their indices, from 0.
    """

    label: str
    colour: str
    marker: str
    layers: list[int]


# What the type of a module is called, in the order in which they are tried.
_FAMILIES = [
    ("attention", re.compile("attention|attn", re.IGNORECASE), VERMILION, "v"),
    ("norm", re.compile("norm", re.IGNORECASE), GREEN, "^"),
    ("embedding", re.compile("embed", re.IGNORECASE), PURPLE, "D"),
    ("linear", re.compile("linear|^Conv1D$", re.IGNORECASE), BLUE, "o"),
    ("convolution", re.compile("conv", re.IGNORECASE), ORANGE, "s"),
    ("recurrent", re.compile("rnn|gru|lstm", re.IGNORECASE), SKY, "P"),
    ("other", re.compile("."), BLACK, "p"),
    ("unknown or mixed", re.compile(""), BLUE, "h"),
]


def kinds_of(types: Sequence[str]) -> list[Kind]:
    """The kinds of layers, from the types of their modules ("" where one is not known).

    A kind whose layers have all one type is called by it, such as "Conv2d" instead of "convolution".
    """
    families = [next(name for name, pattern, _, _ in _FAMILIES if pattern.search(one)) for one in types]
    found = []
    for name, _, colour, marker in _FAMILIES:
        layers = [index for index, family in enumerate(families) if family == name]
        exact = {types[index] for index in layers}
        if layers:
            found.append(Kind((exact.pop() if len(exact) == 1 else "") or name, colour, marker, layers))
    return found
