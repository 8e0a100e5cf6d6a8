"""The mutants keep up with the code: what each of them replaces is there, and so are the tests that should notice."""

from __future__ import annotations

import ast
from pathlib import Path

from python_tests.mutations.all_mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_text_of_each_mutant_is_in_its_file_once() -> None:
    texts = {file: (ROOT / file).read_text() for file in {one.file for one in MUTANTS}}
    assert {one.name: texts[one.file].count(one.text) for one in MUTANTS if texts[one.file].count(one.text) != 1} == {}
    for one in MUTANTS:
        if one.file.endswith(".py"):
            ast.parse(texts[one.file].replace(one.text, one.replacement))


def test_the_tests_of_each_mutant_are_there() -> None:
    for one in MUTANTS:
        assert one.tests
        for file, _, name in (test.partition("::") for test in one.tests):
            assert f"def {name}" in (ROOT / file).read_text(), f"{one.name}: {file}::{name}"


def test_each_mutant_has_a_name_of_its_own() -> None:
    names = [one.name for one in MUTANTS]
    assert len(names) >= 60
    assert sorted(set(names)) == sorted(names)
