"""Tables as text with aligned columns, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: The text of its first line.
        cells: The text of each line below.
        align: "left" for words, "right" for numbers.
    """

    heading: str
    cells: Sequence[str]
    align: Literal["left", "right"] = "right"


def text_table(columns: Sequence[Column], *, rule: bool = False) -> str:
    """Lays out columns side by side with two spaces between them.

    Args:
        columns: The columns from left to right, all with the same number of cells.
        rule: Whether a line of dashes separates the headings from the cells.

    Returns:
        The lines, joined by line feeds; none of them ends in a space.

    Raises:
        ValueError: If the columns differ in their number of cells.

    Example:
        >>> print(text_table([Column("layer", ["fc1", "out"], "left"), Column("n", ["5", "12"])], rule=True))
        layer   n
        ---------
        fc1     5
        out    12
    """
    padded = []
    for column in columns:
        texts = [column.heading, *column.cells]
        width = max(map(len, texts))
        padded.append([text.ljust(width) if column.align == "left" else text.rjust(width) for text in texts])
    lines = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
    if rule:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def html_table(columns: Sequence[Column], title: str, *, bold: int | None = None) -> str:
    """The same columns as HTML, below a title.

    Args:
        columns: The columns from left to right, all with the same number of cells.
        title: The caption.
        bold: The row that stands out, from 0; None for none.

    Returns:
        A table element, with all text escaped.

    Raises:
        ValueError: If the columns differ in their number of cells.

    Example:
        >>> html_table([Column("layer", ["a&b"])], "one layer")
        '<table><caption>one layer</caption><tr><th>layer</th></tr><tr><td>a&amp;b</td></tr></table>'
    """

    def rows() -> Iterator[str]:
        yield "".join(f"<th>{html.escape(column.heading)}</th>" for column in columns)
        for index, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            texts = [f"<b>{html.escape(cell)}</b>" if index == bold else html.escape(cell) for cell in cells]
            yield "".join(f"<td>{text}</td>" for text in texts)

    inner = "".join(f"<tr>{row}</tr>" for row in rows())
    return f"<table><caption>{html.escape(title)}</caption>{inner}</table>"
