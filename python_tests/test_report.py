"""AlignmentReport: mapping, peak, tables, conversions and error messages."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys
from typing import Any

import pytest
import torch

from ahkernels import STATISTICS
from ahkernels.report import AlignmentReport

NAN = math.nan


def make(**changes: Any) -> AlignmentReport:
    """A report of three layers, with other fields or statistics where they are given."""
    statistics = {
        "cka": torch.tensor([0.125, 0.5, 0.25], dtype=torch.float64),
        "centered_norm": torch.tensor([1.0, 20.0, 300.0], dtype=torch.float64),
        "trace": torch.tensor([2.0, 40.0, 600.0], dtype=torch.float64),
    }
    fields: dict[str, Any] = {"layers": ["fc1", "fc2", "fc3"], "n": 64, "outputs": "all", "precision": "highest"}
    for name, value in changes.items():
        (statistics if name in STATISTICS else fields)[name] = value
    return AlignmentReport(statistics=statistics, **fields)


def decomposed() -> AlignmentReport:
    return make(forward_cka=torch.tensor([0.1, 0.2, 0.3]), backward_cka=torch.tensor([0.6, 0.5, NAN]))


# ---- construction


def test_positional_order_of_fields() -> None:
    one = torch.ones(1, dtype=torch.float64)
    report = AlignmentReport(["a"], {"trace": 3 * one, "cka": one, "centered_norm": 2 * one}, 7, [0, 2], "high")
    assert [v.item() for v in (report.cka, report.centered_norm, report.trace)] == [1, 2, 3]
    assert list(report.statistics) == ["cka", "centered_norm", "trace"]
    assert (report.n, report.outputs, report.precision) == (7, [0, 2], "high")


def test_kinds_are_of_the_layers_or_unknown() -> None:
    assert make().kinds == ["", "", ""]
    report = make(kinds=("Linear", "", "Conv2d"))
    assert report.kinds == report.to_dict()["kinds"] == ["Linear", "", "Conv2d"]
    with pytest.raises(ValueError, match=r"^kinds: expected one for each of the 3 layers, got \['Linear'\]"):
        make(kinds=["Linear"])


def test_statistics_by_name() -> None:
    report = decomposed()
    assert report.forward_cka is report.statistics["forward_cka"]
    assert report.stable_rank is None
    assert "forward_cka" in dir(report) and "stable_rank" not in dir(report)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        report.colour  # noqa: B018
    again = pickle.loads(pickle.dumps(report))
    assert torch.equal(again.cka, report.cka) and again.layers == report.layers


def test_unknown_or_missing_statistics() -> None:
    one = torch.ones(1)
    expected = "statistics: expected cka, centered_norm, trace and others of .*, got cka"
    for statistics in ({"cka": one}, {"cka": one, "centered_norm": one, "trace": one, "colour": one}):
        with pytest.raises(ValueError, match=expected):
            AlignmentReport(["a"], statistics, 7, "all", "high")


def test_row() -> None:
    assert make().row() == {"cka/fc1": 0.125, "cka/fc2": 0.5, "cka/fc3": 0.25}
    assert list(decomposed().row())[3:7] == [
        "forward_cka/fc1",
        "forward_cka/fc2",
        "forward_cka/fc3",
        "backward_cka/fc1",
    ]


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().n = 3  # type: ignore[misc]


def test_tensors_become_detached_fp64() -> None:
    report = make(cka=torch.tensor([0.1, 0.2, 0.3], requires_grad=True))
    assert report.cka.dtype == torch.float64
    assert not report.cka.requires_grad


@pytest.mark.parametrize("name", ["cka", "centered_norm", "trace", "forward_cka", "backward_cka"])
def test_wrong_length_names_the_field(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \[3\], one value per layer, got \[2\]"):
        make(**{name: torch.zeros(2)})


def test_duplicate_names_are_refused() -> None:
    with pytest.raises(ValueError, match="layers: expected distinct names"):
        make(layers=["fc1", "fc1", "fc3"])


# ---- mapping


def test_is_a_mapping_in_forward_order() -> None:
    report = make()
    assert len(report) == 3
    assert list(report) == list(report.keys()) == ["fc1", "fc2", "fc3"]
    assert list(report.values()) == [0.125, 0.5, 0.25]
    assert dict(report.items()) == {"fc1": 0.125, "fc2": 0.5, "fc3": 0.25}
    assert type(report["fc3"]) is float
    assert "fc2" in report and "fc9" not in report
    assert report.get("fc9") is None


def test_unknown_layer_names_the_nearest() -> None:
    report = make(layers=["encoder.fc", "encoder.norm", "head"])
    with pytest.raises(KeyError, match=r"one of the 3 .*nearest: 'encoder\.fc'.*got 'encoder\.fcc'"):
        report["encoder.fcc"]


def test_unknown_layer_without_near_names_lists_some() -> None:
    with pytest.raises(KeyError, match=r"nearest: 'fc1', 'fc2', 'fc3'.*got 0"):
        make()[0]  # type: ignore[index]


# ---- peak


def test_peak_ignores_nan() -> None:
    assert make().peak == "fc2"
    assert make(cka=torch.tensor([NAN, 0.1, 0.2])).peak == "fc3"


def test_peak_of_equals_is_the_first() -> None:
    assert make(cka=torch.tensor([0.1, 0.4, 0.4])).peak == "fc2"


def test_peak_of_nothing() -> None:
    assert make(cka=torch.full((3,), NAN)).peak is None
    empty = torch.empty(0)
    assert make(layers=[], cka=empty, centered_norm=empty, trace=empty).peak is None


# ---- text


def test_text_table() -> None:
    assert str(make()).splitlines() == [
        "Tangent-kernel alignment, n = 64, outputs = all, centering = global, precision = highest",
        "   layer     cka  centered norm      trace",
        "------------------------------------------",
        "   fc1    0.1250      1.000e+00  2.000e+00",
        "*  fc2    0.5000      2.000e+01  4.000e+01",
        "   fc3    0.2500      3.000e+02  6.000e+02",
    ]


def test_text_is_aligned_with_long_names_and_nan() -> None:
    report = make(layers=["a", "a.very.long.module.name", "b"], cka=torch.tensor([0.1, NAN, 0.2]))
    _, heading, _, *rows = str(report).splitlines()
    assert len({len(line) for line in [heading, *rows]}) == 1
    assert "nan" in rows[1] and rows[2].startswith("*")


def test_text_shows_the_decomposition_when_there() -> None:
    assert "forward" not in str(make())
    assert str(decomposed()).splitlines()[1].split()[:4] == ["layer", "cka", "forward", "backward"]


def test_small_alignments_do_not_look_like_zero() -> None:
    rows = str(make(cka=torch.tensor([0.0, 4.3e-5, 0.0012], dtype=torch.float64))).splitlines()[3:]
    assert [row.lstrip("* ").split()[1] for row in rows] == ["0.0000", "4.3e-05", "0.0012"]


def test_text_of_an_empty_report() -> None:
    empty = torch.empty(0)
    report = make(layers=[], cka=empty, centered_norm=empty, trace=empty)
    assert "layer" in str(report) and "<table>" in report._repr_html_()


def test_html_escapes_names_and_marks_the_peak() -> None:
    text = make(layers=["<a>", "b&c", "d"])._repr_html_()
    assert "<td>&lt;a&gt;</td>" in text and "<a>" not in text
    assert "<td><b>b&amp;c</b></td>" in text
    assert text.count("<tr") == text.count("</tr>") == 4


# ---- conversion


def test_to_dict_is_strict_json_with_none_for_nan() -> None:
    report = make(cka=torch.tensor([0.5, NAN, 0.25]), trace=torch.tensor([1.0, math.inf, 2.0]), outputs=[0, 2])
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain == {
        "layers": ["fc1", "fc2", "fc3"],
        "kinds": ["", "", ""],
        "n": 64,
        "outputs": [0, 2],
        "precision": "highest",
        "centering": "global",
        "certificate": None,
        "statistics": {"cka": [0.5, None, 0.25], "centered_norm": [1.0, 20.0, 300.0], "trace": [1.0, "inf", 2.0]},
    }


def test_to_dict_is_a_copy() -> None:
    report = make()
    report.to_dict()["layers"].append("fc4")
    assert len(report) == 3


def test_to_dataframe() -> None:
    pytest.importorskip("pandas")
    frame = decomposed().to_dataframe()
    assert list(frame.columns) == ["cka", "forward_cka", "backward_cka", "centered_norm", "trace"]
    assert frame.index.name == "layer"
    assert frame.loc["fc2", "cka"] == 0.5
    assert math.isnan(frame.loc["fc3", "backward_cka"])
    assert "forward_cka" not in make().to_dataframe()


@pytest.mark.parametrize(
    ("module", "method", "hint"),
    [
        ("pandas", "to_dataframe", r"to_dataframe\(\) needs pandas: pip install pandas"),
        ("matplotlib.pyplot", "plot", r'plot\(\) needs matplotlib: pip install "ahkernels\[plot\]"'),
    ],
)
def test_missing_packages_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, method: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=hint):
        getattr(make(), method)()
