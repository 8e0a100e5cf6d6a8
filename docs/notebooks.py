"""The first pages of the documentation as notebooks, executed: `python docs/notebooks.py FOLDER`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parent
PAGES = ["quickstart.md", "what-the-number-means.md", "guides/any-model.md"]


def notebook(page: Path, folder: Path) -> nbformat.NotebookNode:
    """A page as a notebook with the results of its Python.

    Args:
        page: A page in Markdown. Its blocks of Python become cells; those of other languages stay text.
        folder: The working directory of the cells.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises.
    """
    text = re.sub(r"^```(?!python$)\w+$", "```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = jupytext.reads(text, fmt="md")
    found.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    found.cells.insert(0, nbformat.v4.new_code_cell("%matplotlib inline"))
    NotebookClient(found, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return found


def main() -> None:
    """Writes all of them."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        page = DOCS / name
        nbformat.write(notebook(page, folder), folder / f"{page.stem}.ipynb")
        print(folder / f"{page.stem}.ipynb")


if __name__ == "__main__":
    main()
