"""Tables as CSV, with a digest of all else in the last column.

Every line has the same digest, so that none can go missing. It is of the cells and not of the bytes: a table that
another program has saved with other quotes or line ends reads as before, and one in which a cell has changed does not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from ahkernels.files.digest import DIGEST, digest_of, require_digest


def to_csv(columns: Sequence[str], lines: Iterable[Mapping[str, object]], *, digest: bool = True) -> bytes:
    """The text of a table. Floats are the shortest text that reads back as the same number.

    Args:
        columns: The names of the columns.
        lines: {column: value} for each line. A cell is empty where a line lacks the column.
        digest: Whether to add the column with the digest.

    Raises:
        ValueError: If a line has another column.
    """
    lines = list(lines)
    if digest:
        found = digest_of([to_csv(columns, lines, digest=False)])
        columns, lines = [*columns, DIGEST], [{**line, DIGEST: found} for line in lines]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def from_csv(content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and lines of a table that has a digest, without that.

    Raises:
        ValueError: For anything else, and for cells that are not those of the digest. Where there is no line there is
            none to check.
    """
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    try:
        columns, lines = list(reader.fieldnames or []), list(reader)
    except csv.Error as error:
        raise ValueError(f"expected a table, got: {error}") from error
    if any(None in line or None in line.values() for line in lines):
        raise ValueError(f"expected {len(columns)} cells in each line, got another number of them")
    if len(set(columns)) < len(columns):
        raise ValueError(f"expected each column once, got {columns}")
    if columns[-1:] != [DIGEST]:
        raise ValueError(f"expected the last column {DIGEST}, without which damage would go unnoticed, got {columns}")
    found = {line.pop(DIGEST) for line in lines}
    columns.pop()
    if len(found) > 1:
        raise ValueError(f"expected the same {DIGEST} in each line, got several")
    for one in found:
        require_digest(one, [to_csv(columns, lines, digest=False)])
    return columns, lines
