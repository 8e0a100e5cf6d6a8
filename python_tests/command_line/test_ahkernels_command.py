"""The command `ahkernels`: its files, its exit status, and a sentence for each mistake."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ahkernels as ah
from ahkernels.command_line import main
from ahkernels.command_line import measure as command

pytest.importorskip("matplotlib").use("Agg")
ROOT = Path(__file__).resolve().parents[2]
PROJECT = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = make()

    def forward(self, ids, scale):
        return self.layers(nn.functional.one_hot(ids, 4) * scale)

def broken():
    return 1 / 0

not_a_model = dict
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a project, data and three checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "our_project", raising=False)
    (tmp_path / "our_project.py").write_text(PROJECT)
    draws = np.random.default_rng(0)
    np.savez("probe.npz", x=draws.normal(size=(12, 4)), y=np.arange(12) % 3)  # in float64, as numpy has it
    np.savez("two.npz", ids=np.arange(12) % 4, scale=draws.normal(size=(12, 1)), y=np.arange(12) % 3)
    for step in (0, 10, 20):
        torch.manual_seed(step)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        torch.save(model.state_dict(), f"step{step}.pt")
    yield tmp_path
    sys.modules.pop("our_project", None)


def measure(*words: str, model: str = "our_project:make", data: str = "probe.npz") -> int:
    return main(["measure", model, *words, "--data", data, "--output", "out", "--quiet"])


CHECKPOINTS = ("--checkpoints", "step20.pt", "step0.pt", "step10.pt")


def test_measure_writes_json_csv_and_a_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--centering", "per_output", "global", "--statistics", "stable_rank", "--outputs", "0", "2")
    assert measure(*CHECKPOINTS, *words) == 0
    history = ah.AlignmentHistory.load("out/history.json")
    assert history.steps == [0, 10, 20] and history.centerings == ["per_output", "global"]
    assert history[0].report.outputs == [0, 2] and history[0].report.stable_rank is not None
    assert torch.equal(ah.AlignmentHistory.load("out/history.csv").cka, history.cka)
    assert Path("out/history.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert str(history[-1].report) in printed and printed.endswith("out/history.png\n")


def test_measure_without_checkpoints_takes_the_model_as_it_is(folder: Path) -> None:
    assert measure(model="our_project:Two", data="two.npz") == 0
    from our_project import Two

    with np.load("two.npz") as arrays:
        x = {"ids": torch.from_numpy(arrays["ids"]), "scale": torch.from_numpy(arrays["scale"]).float()}
        wanted = ah.layerwise_alignment(Two(), x, torch.from_numpy(arrays["y"]))
    history = ah.AlignmentHistory.load("out/history.json")
    assert history.steps == [0] and torch.equal(history.cka[0], wanted.cka)
    assert {"model", "x", "y", "outputs"} <= set(history.settings)


def test_estimates_and_memory_budget_are_what_was_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Tracker(ah.AlignmentTracker):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(command, "AlignmentTracker", Tracker)
    assert measure("--tolerance", "0.5", "--products", "8", "--memory-budget", "0.5") == 0
    assert (made[0]["tolerance"], made[0]["products"], made[0]["memory_budget"]) == (0.5, 8, 512 * 1024**2)


def test_data_in_safetensors(folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with np.load("probe.npz") as arrays:
        safetensors.save_file({name: torch.from_numpy(arrays[name]) for name in ("x", "y")}, "probe.safetensors")
    assert measure() == 0
    wanted = ah.AlignmentHistory.load("out/history.json")
    Path("out").rename("before")
    assert measure(data="probe.safetensors") == 0
    assert torch.equal(ah.AlignmentHistory.load("out/history.json").cka, wanted.cka)


def test_a_killed_series_goes_on_and_ends_in_the_same_file(folder: Path) -> None:
    command = [sys.executable, "-m", "ahkernels", "measure", "our_project:make", "--data", "probe.npz", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    checkpoints = [f"more{step}.pt" for step in range(20)]
    command += ["--checkpoints", *checkpoints, "--output"]
    for path in checkpoints:
        Path(path).write_bytes(Path("step0.pt").read_bytes())
    process = subprocess.Popen([*command, "killed"], env=environment, cwd=folder)
    path = folder / "killed" / "history.json"
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(ah.AlignmentHistory.load(path))
    assert 1 <= done < 20
    assert not (folder / "killed" / "history.csv").exists()
    for output in ("killed", "whole"):
        subprocess.run([*command, output], env=environment, cwd=folder, check=True)
    for name in ("history.json", "history.csv"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()


MISTAKES: dict[str, tuple[list[str], dict[str, str], str]] = {
    "no colon": ([], {"model": "our_project"}, "MODEL: expected module:function, .*, got 'our_project'"),
    "no module": ([], {"model": "nowhere:make"}, "whose module raises ModuleNotFoundError"),
    "no function": ([], {"model": "our_project:nope"}, "our_project has no such function"),
    "a factory that raises": ([], {"model": "our_project:broken"}, "which raises ZeroDivisionError"),
    "no model": ([], {"model": "our_project:not_a_model"}, "which returns dict"),
    "no data": ([], {"data": "nowhere.npz"}, "--data: expected an .npz or .safetensors file .* does not exist"),
    "other data": ([], {"data": "our_project.py"}, "--data: expected an .npz or .safetensors file .*, got 'our_pro"),
    "damaged data": ([], {"data": "damaged.npz"}, "--data: .* which cannot be read"),
    "data without labels": ([], {"data": "unlabelled.npz"}, "--data: .*'unlabelled.npz' with x"),
    "no checkpoint": (["--checkpoints", "step1.pt"], {}, "paths: expected files, got 'step1.pt'"),
    "another model's checkpoint": (
        ["--checkpoints", "other1.pt"],
        {},
        "paths: expected the weights of the model, a Sequential",
    ),
    "steps": (
        ["--checkpoints", "step0.pt", "--steps", "1", "2"],
        {},
        "steps: expected one for each of the 1 checkpoints, got 2",
    ),
    "layer": (["--layers", "fc"], {}, "layers: .*fc"),
    "centering": (["--centering", "local"], {}, "centering: expected .* got .*local"),
    "statistic": (["--statistics", "rank"], {}, "statistics: .*rank"),
    "output": (["--outputs", "7"], {}, "outputs: expected indices from 0 to 2, got 7"),
    "budget": (["--memory-budget", "0"], {}, "memory_budget: expected a positive number of bytes, got 0"),
    "device": (["--device", "abacus"], {}, "--device: expected a device of this machine, got 'abacus'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez("unlabelled.npz", x=np.ones((3, 4)))
    torch.save({"weight": torch.ones(2)}, "other1.pt")
    words, others, message = MISTAKES[name]
    assert measure(*words, **others) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ahkernels: error: ")
    assert re.search(message, err.replace("\n", " "))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["measure"], "the following arguments are required: MODEL"),
        (["mesure"], "invalid choice: 'mesure'"),
        (["measure", "a:b", "--data", "d", "--output", "o", "--products", "many"], "invalid int value: 'many'"),
    ],
)
def test_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_file_in_place_of_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").write_text("precious")
    assert measure() == 2
    assert "a name that one can be made with, got 'out' (File exists)" in capsys.readouterr().err
    assert Path("out").read_text() == "precious"


def test_a_second_measurement_with_other_options_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(*CHECKPOINTS) == 0
    assert measure(*CHECKPOINTS, "--layers", "0") == 2
    assert "expected a history measured with layers = ['0']" in capsys.readouterr().err


def test_a_finished_series_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(*CHECKPOINTS) == 0
    before = Path("out/history.json").read_bytes()
    assert measure() == 2
    assert "--output: expected a folder without a history" in capsys.readouterr().err
    assert Path("out/history.json").read_bytes() == before


def test_an_error_of_the_model_is_told_and_can_be_traced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("flat.npz", x=np.ones((12, 7)), y=np.arange(12) % 3)
    assert measure(data="flat.npz") == 2
    assert capsys.readouterr().err.startswith("ahkernels: error: RuntimeError: ")
    words = ["--traceback", "measure", "our_project:make", "--data", "flat.npz", "--output", "out", "--quiet"]
    with pytest.raises(RuntimeError):
        main(words)


def test_an_interruption_has_its_own_status(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("ahkernels.command_line.measure.measure_checkpoints", interrupted)
    assert measure(*CHECKPOINTS) == 130


def test_plot_draws_a_history(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(*CHECKPOINTS) == 0
    for ending in (".json", ".csv"):
        assert main(["plot", f"out/history{ending}", "--output", "picture.svg"]) == 0
        assert "<svg" in Path("picture.svg").read_text()
    capsys.readouterr()
    assert main(["plot", "our_project.py", "--output", "picture.svg"]) == 2
    assert main(["plot", "out/history.json", "--output", "picture.nothing"]) == 2
    assert capsys.readouterr().err.count("ahkernels: error: ") == 2


def test_info_says_how_it_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert ah.__version__ in printed and torch.__version__ in printed and "cpu capability" in printed
