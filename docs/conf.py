"""How Sphinx builds the site: `sphinx-build -W --keep-going docs docs/_build/html` in the root of the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx_gallery.sorting import ExplicitOrder

import ahkernels

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

project = "ahkernels"
author = copyright = "The ahkernels authors"
version = release = ahkernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "gallery/*.ipynb", "gallery/*.py", "gallery/*.zip"]
html_theme = "furo"
html_title = f"ahkernels {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ---- pages in Markdown, which GitHub shows as well
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

# ---- the API from docstrings in Google style
default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["lightning", "pytorch_lightning", "transformers"]  # that callbacks are classes of
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# ---- the gallery
os.environ.setdefault("MPLBACKEND", "agg")
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1000,
    "abort_on_example_error": True,
    "capture_repr": (),
    "image_srcset": ["2x"],
    "within_subsection_order": ExplicitOrder(
        [
            "own_network.py",
            "training_run.py",
            "two_centerings.py",
            "convolutional_network.py",
            "transformer.py",
            "spectrum.py",
            "layer_similarity.py",
            "error_bars.py",
            "kernel_regression.py",
            "checkpoint_series.py",
            "theory_and_measurement.py",
        ]
    ),
}

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^()\s]+)\)")
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}


def links_within_the_site(app: Any, page: str, source: list[str]) -> None:
    """Turns a link to a file of the repository that is no page into the name of the file."""
    folder = (DOCS / page).parent

    def replaced(link: re.Match[str]) -> str:
        path, hash_, anchor = link["target"].partition("#")
        if not path or ":" in path:
            return link[0]
        file = (folder / path).resolve()
        if file.is_relative_to(DOCS):
            return link[0]
        name = file.relative_to(ROOT).as_posix()
        if name in PAGES:
            to = os.path.relpath(DOCS / PAGES[name], folder)
            return f"[{link['text']}]({to}{hash_}{anchor})"
        same = link["text"].strip("`") in (name, name.rpartition("/")[2])
        return f"`{name}`" if same else f"{link['text']} (`{name}`)"

    # The text between the fences of code stays as it is.
    parts = re.split(r"(^```.*?^```[ \t]*$)", source[0], flags=re.MULTILINE | re.DOTALL)
    source[0] = "".join(one if one.startswith("```") else LINK.sub(replaced, one) for one in parts)


def formulas_are_no_markup(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes the bars of ||K||_F and the stars of [n*o], which reStructuredText would take for something else."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[index] = re.sub(r"[|*]", r"\\\g<0>", line)


def setup(app: Any) -> None:
    """Registers what is above."""
    app.connect("source-read", links_within_the_site)
    app.connect("autodoc-process-docstring", formulas_are_no_markup, priority=400)
