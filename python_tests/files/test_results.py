"""AlignmentHistory and AlignmentReport: what is refused, tables, and files that read back exactly."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ahkernels.certificate import Certificate
from ahkernels.files import csv_table, json_format, npz_format
from ahkernels.history import AlignmentHistory, Measurement
from ahkernels.report import AlignmentReport

NAN, INF = math.nan, math.inf
ENDINGS = [".json", ".csv", ".npz"]
LAYERS = ["fc1", 'a, "quoted"\nname', "(root)"]


def report(centering: str = "global", seed: int = 0, **others: Any) -> AlignmentReport:
    numbers = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    numbers[0, 1] = NAN
    statistics = dict(zip(("cka", "centered_norm", "trace"), numbers, strict=True))
    statistics |= {name: torch.tensor([1 / 3, NAN, 1e-300]) for name in others.pop("more", ())}
    settings = {"n": 40, "outputs": "all", "precision": "highest", **others}
    return AlignmentReport(LAYERS, statistics, centering=centering, **settings)


def one_layer(name: str) -> AlignmentReport:
    return AlignmentReport([name], dict.fromkeys(("cka", "centered_norm", "trace"), torch.ones(1)), 4, "all", "highest")


CERTIFIED = report(
    more=["stable_rank"],
    outputs=[2, 0],
    kinds=["Linear", "", "a, kind"],
    certificate=Certificate({"fc1": 1e-9, "(root)": NAN}, 4),
)
HISTORIES = {
    "empty": AlignmentHistory(),
    "one step": AlignmentHistory([Measurement(7, {}, {"global": CERTIFIED})]),
    "metrics that come and go": AlignmentHistory(
        [
            Measurement(0, {"loss": 1 / 3, "n": 1.0}, {"global": report()}),
            Measurement(10, {"loss": NAN, "metrics/step": -INF, "layer": INF}, {"global": report(seed=1)}),
            Measurement(2**40, {}, {"global": report(seed=2, more=["stable_rank"])}),
        ]
    ),
    "two centerings": AlignmentHistory(
        [
            Measurement(
                step,
                {"loss": 0.5},
                {"per_output": report("per_output", step, outputs=3), "global": report("global", -step)},
            )
            for step in (1, 2)
        ]
    ),
}
REPORTS = {"plain": report(), "certified": CERTIFIED, "never certified": report(outputs=0)}


def plain(result: Any) -> str:
    """The whole content, in which nan is equal to nan."""
    return json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_histories_read_back_exactly(history: AlignmentHistory, ending: str, tmp_path: Path) -> None:
    history.save(tmp_path / f"run{ending}")
    again = AlignmentHistory.load(str(tmp_path / f"run{ending}"))
    assert plain(again) == plain(history)
    again.save(tmp_path / f"again{ending}")
    if ending != ".npz":  # which has the time in it
        assert (tmp_path / f"again{ending}").read_bytes() == (tmp_path / f"run{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("found", REPORTS.values(), ids=REPORTS)
def test_reports_read_back_exactly(found: AlignmentReport, ending: str, tmp_path: Path) -> None:
    found.save(tmp_path / f"report{ending}")
    assert plain(AlignmentReport.load(tmp_path / f"report{ending}")) == plain(found)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_report_is_no_history(ending: str, tmp_path: Path) -> None:
    report().save(tmp_path / f"report{ending}")
    HISTORIES["two centerings"].save(tmp_path / f"run{ending}")
    with pytest.raises(ValueError, match=r"^path: expected a history that save\(\) wrote in "):
        AlignmentHistory.load(tmp_path / f"report{ending}")
    with pytest.raises(ValueError, match=r"^path: expected a report that save\(\) wrote in "):
        AlignmentReport.load(tmp_path / f"run{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"step,layer\n1,2\n", b"\xff\xfe\x00", b"PK\x03\x04"])
def test_other_files_are_refused(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{ending}"
    path.write_bytes(content)
    for kind in (AlignmentHistory, AlignmentReport):
        with pytest.raises(ValueError, match=r"^path: expected a"):
            kind.load(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cut_file_is_refused_or_has_whole_lines(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{ending}"
    history = HISTORIES["two centerings"]
    history.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 40])
    with pytest.raises(ValueError, match=r"^path: expected a"):
        AlignmentHistory.load(path)


def test_a_table_that_has_lost_its_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    HISTORIES["two centerings"].save(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: lines.index(next(line for line in reversed(lines) if "(root)" in line))]))
    with pytest.raises(
        ValueError, match=r"^path: expected a file that save\(\) wrote, got .* \(it has changed since it was written"
    ):
        AlignmentHistory.load(path)


def edited(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


@pytest.mark.parametrize("ending", [".json", ".csv"])
@pytest.mark.parametrize("old", ["0.5", "highest", "per_output", "fc1"])
def test_a_file_that_was_edited_is_refused(old: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{ending}"
    HISTORIES["two centerings"].save(path)
    new = {"0.5": "0.25", "highest": "high", "per_output": "global", "fc1": "fc9"}[old]
    edited(path, lambda text: text.replace(old, new))
    with pytest.raises(
        ValueError, match=r"^path: expected a file that save\(\) wrote, got .* \(it has changed since it"
    ):
        AlignmentHistory.load(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_without_a_digest_is_refused(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"run{ending}"
    with monkeypatch.context() as patch:  # as an earlier version wrote it
        for module in (json_format, csv_table, npz_format):
            patch.setattr(module, "DIGEST", "other")
        HISTORIES["two centerings"].save(path)
    with pytest.raises(ValueError, match=r"^path: expected a file that save\(\) wrote, got .*digest, without which"):
        AlignmentHistory.load(path)
    if ending == ".json":
        found = AlignmentHistory.from_dict(json.loads(path.read_text()))  # which looks at no digest
        assert plain(found) == plain(HISTORIES["two centerings"])


def test_an_archive_of_which_an_array_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    HISTORIES["two centerings"].save(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    arrays["global/trace"][0, 0] += 1e-9
    np.savez_compressed(path, allow_pickle=False, **arrays)
    with pytest.raises(
        ValueError, match=r"^path: expected .* \(it has changed since it was written, as its digest tells"
    ):
        AlignmentHistory.load(path)


def test_a_table_that_a_spreadsheet_has_saved_as_it_was_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    history = AlignmentHistory([Measurement(3, {"loss": 0.5}, {"global": one_layer("fc1")})])
    history.save(path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    assert plain(AlignmentHistory.load(path)) == plain(history)


def test_a_table_of_which_only_the_names_are_left_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    HISTORIES["two centerings"].save(path)
    edited(path, lambda text: text.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match=r"^path: expected .*expected lines below the names of the columns, got none"):
        AlignmentHistory.load(path)


def test_integers_among_metrics_read_back(tmp_path: Path) -> None:
    history = AlignmentHistory([Measurement(0, {"epoch": 3}, {"global": report()})])
    for ending in ENDINGS:
        history.save(tmp_path / f"run{ending}")
        assert AlignmentHistory.load(tmp_path / f"run{ending}")[0].metrics == {"epoch": 3}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for kind in (AlignmentHistory, AlignmentReport):
        with pytest.raises(FileNotFoundError, match=r"^path: expected a file that save\(\) wrote, got .*none.json', "):
            kind.load(tmp_path / "none.json")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    for act in (report().save, HISTORIES["empty"].save, AlignmentHistory.load, AlignmentReport.load):
        with pytest.raises(ValueError, match=r"^path: expected a name that ends in .json, .csv, .npz, got .*run.txt"):
            act(tmp_path / "run.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_csv_has_a_line_for_each_step_centering_and_layer(tmp_path: Path) -> None:
    history = HISTORIES["two centerings"]
    history.save(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    fields = ["cka", "centered_norm", "trace", "n", "outputs", "precision"]
    assert list(rows[0]) == ["step", "metrics/loss", "centering", "layer", "kind", *fields, "digest"]
    assert len({row["digest"] for row in rows}) == 1
    assert [row["layer"] for row in rows] == 4 * LAYERS
    first = history[0].reports["per_output"]
    assert [float(row["trace"]) for row in rows[:3]] == first.trace.tolist()
    pandas = pytest.importorskip("pandas")
    frame = history.to_dataframe()
    assert [*frame.columns, "digest"] == list(rows[0]) and len(frame) == len(rows)
    read = pandas.read_csv(tmp_path / "run.csv", converters={"trace": float})  # pandas 2 rounds what it reads itself
    assert read["trace"].tolist() == frame["trace"].tolist()


def test_arrays_of_an_npz_are_tables(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    history = HISTORIES["metrics that come and go"]
    history.save(tmp_path / "run.npz")
    with numpy.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        assert arrays["step"].tolist() == history.steps
        assert numpy.array_equal(arrays["global/cka"], history.cka.numpy(), equal_nan=True)
        assert numpy.isnan(arrays["global/stable_rank"][:2]).all(), "which only the last step has"


def test_dataset_has_values_by_step_layer_and_statistic() -> None:
    pytest.importorskip("xarray")
    history = HISTORIES["two centerings"]
    data = history.to_xarray()
    assert dict(data["value"].sizes) == {"centering": 2, "step": 2, "layer": 3, "statistic": 3}
    one = data["value"].sel(centering="per_output", step=2, layer="fc1", statistic="trace")
    assert float(one) == float(history[1].reports["per_output"].trace[0])
    assert float(data["metrics"].sel(step=1, metric="loss")) == 0.5
    assert dict(HISTORIES["one step"].to_xarray()["metrics"].sizes) == {"step": 1, "metric": 0}
    with pytest.raises(ValueError, match=r"^history: expected at least one measurement, got none$"):
        AlignmentHistory().to_xarray()
    of_report = CERTIFIED.to_xarray()["value"]
    assert float(of_report.sel(layer="(root)", statistic="stable_rank")) == float(CERTIFIED.stable_rank[2])


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        (Measurement(10, {}, {"global": report()}), r"^step: expected more than 10, the last one, got 10$"),
        (Measurement(11, {}, {"per_output": report("per_output")}), r"^centering: expected that of the history"),
        (
            Measurement(11, {}, {"global": one_layer("a")}),
            r"^model: expected the layers of the history \['fc1', .*\], got \['a'\]$",
        ),
    ],
    ids=["step", "centering", "layers"],
)
def test_what_does_not_belong_to_a_history_is_refused(measurement: Measurement, message: str) -> None:
    history = AlignmentHistory([Measurement(10, {}, {"global": report()})])
    with pytest.raises(ValueError, match=message):
        history.append(measurement)
    assert history.steps == [10]


def test_a_part_of_a_history_is_a_history() -> None:
    history = HISTORIES["metrics that come and go"]
    assert history[1:].steps == [10, 2**40] and history[-1].step == 2**40
    assert [one.step for one in history] == history.steps


def test_a_long_history_prints_its_ends() -> None:
    history = AlignmentHistory(
        [Measurement(step, {"loss": 1.0 / (step + 1)}, {"global": report(seed=step)}) for step in range(100)]
    )
    lines = str(history).splitlines()
    assert lines[0] == "Alignment history, 100 measurements of 3 layers, centering = global"
    assert lines[1].split() == ["step", "loss", "peak", "alignment"]
    assert [line.split()[0] for line in lines[3:]] == ["0", "1", "2", "...", *map(str, range(91, 100))]
    assert str(AlignmentHistory()) == "Alignment history without a measurement"
    assert history._repr_html_().count("<tr>") == 1 + 13
    assert "<td>&lt;b&gt;</td>" in AlignmentHistory([Measurement(0, {}, {"global": one_layer("<b>")})])._repr_html_()
