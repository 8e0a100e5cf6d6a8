"""Text tables."""

from __future__ import annotations

import pytest

from ahkernels.table import Column, text_table


def test_columns_are_aligned_with_two_spaces_between_and_none_at_the_end_of_a_line():
    columns = [
        Column(" ", ["", "*"], "left"),
        Column("layer", ["conv", "a long name"], "left"),
        Column("cka", ["0.1", "12.25"]),
        Column("kind", ["x", "xyz"], "left"),
    ]
    assert text_table(columns).splitlines() == [
        "   layer          cka  kind",
        "   conv           0.1  x",
        "*  a long name  12.25  xyz",
    ]
    assert text_table(columns, rule=True).splitlines()[1] == "-" * 27


def test_columns_without_cells_have_a_heading_alone():
    assert text_table([Column("layer", [], "left"), Column("cka", [])]) == "layer  cka"


def test_columns_of_several_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        text_table([Column("layer", ["a"]), Column("cka", [])])
