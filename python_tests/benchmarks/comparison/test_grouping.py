"""Layers in groups that stay within a budget."""

from __future__ import annotations

import pytest

from benchmarks.comparison import grouping


def test_groups_keep_order_and_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "BUDGET", 10)
    assert list(grouping.groups([3, 4, 5, 6, 7], [4, 6, 1, 30, 2])) == [[3, 4], [5], [6], [7]]
    assert list(grouping.groups([], [])) == []
