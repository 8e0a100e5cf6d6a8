"""A series of checkpoints: order, formats, resuming, and files that do not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ahkernels as ah
from ahkernels import checkpoints

X, Y = torch.linspace(-1, 1, 24).reshape(12, 2).sin(), torch.arange(12) % 3


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """Checkpoints of steps 0, 5 and 10, whose names do not sort by step."""
    paths = []
    for step in (0, 5, 10):
        paths.append(tmp_path / f"run2_step{step}.pt")
        torch.save(network(step).state_dict(), paths[-1])
    return paths


def measured(paths: Any, **options: Any) -> ah.AlignmentHistory:
    return ah.measure_checkpoints(network, paths, X, Y, progress=False, **options)


def test_each_checkpoint_is_measured_as_its_model(series: list[Path]) -> None:
    history = measured(sorted(map(str, series)), centering="per_output", statistics=["stable_rank"])
    assert history.steps == [0, 5, 10]
    for one in history:
        model = network(one.step).eval()
        wanted = ah.layerwise_alignment(model, X, Y, centering="per_output", statistics=["stable_rank"])
        assert torch.equal(one.report.cka, wanted.cka) and torch.equal(one.report.stable_rank, wanted.stable_rank)
        assert one.report.certificate is not None and one.report.certificate.calls_ago == 0


def test_steps_may_be_given(series: list[Path]) -> None:
    assert measured(series, steps=[30, 10, 20]).steps == [10, 20, 30]


def lightning(model: nn.Module, path: Path) -> None:
    torch.save({"epoch": 3, "optimizer_states": [], "state_dict": model.state_dict()}, path)


def parallel(model: nn.Module, path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)


def compiled(model: nn.Module, path: Path) -> None:
    torch.save({f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}, path)


def safetensors(model: nn.Module, path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)


def part_of_another(model: nn.Module, path: Path) -> None:
    torch.save({f"net.backbone.{name}": value for name, value in model.state_dict().items()}, path)


@pytest.mark.parametrize("write", [lightning, parallel, compiled, safetensors, part_of_another])
def test_formats_of_checkpoints(write: Callable[[nn.Module, Path], None], tmp_path: Path) -> None:
    path = tmp_path / ("1.safetensors" if write is safetensors else "1.ckpt")
    write(network(7), path)
    model = network()
    checkpoints.load_weights(model, path)
    assert all(map(torch.equal, model.state_dict().values(), network(7).state_dict().values()))


def test_a_loader_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "4.txt").write_text("0.5")

    def load(model: nn.Module, path: Path) -> None:
        with torch.no_grad():
            model[0].weight.fill_(float(path.read_text()))  # type: ignore[index, operator]

    assert measured([tmp_path / "4.txt"], load=load).steps == [4]


def test_checkpoints_that_differ_in_their_end_alone_are_told_apart(tmp_path: Path) -> None:
    path, history, content = tmp_path / "4.txt", tmp_path / "history.json", bytes(1 << 20)
    path.write_bytes(content + b"0")
    measured([path], load=lambda *_: None, history=history)
    path.write_bytes(content + b"1")
    with pytest.raises(ValueError, match=r"^history: expected measurements of these checkpoints, got those of another"):
        measured([path], load=lambda *_: None, history=history)


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_an_interrupted_series_goes_on_and_ends_in_the_same_file(
    series: list[Path], ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / f"whole{ending}", tmp_path / f"resumed{ending}"
    wanted = measured(series, history=whole)
    loaded: list[Path] = []

    def load(model: nn.Module, path: Path) -> None:
        loaded.append(path)
        checkpoints.load_weights(model, path)

    def interrupted(model: nn.Module, path: Path) -> None:
        if path == series[1]:
            raise KeyboardInterrupt
        checkpoints.load_weights(model, path)

    with pytest.raises(KeyboardInterrupt):
        measured(series, history=resumed, load=interrupted)
    assert ah.AlignmentHistory.load(resumed).steps == [0]
    found = measured(series, history=resumed, load=load)
    assert loaded == series[1:], "what was measured is not measured again"
    assert found.to_dict() == wanted.to_dict()
    if ending == ".json":
        assert resumed.read_bytes() == whole.read_bytes()
    assert measured(series, history=resumed, load=fails).to_dict() == wanted.to_dict()


def fails(model: nn.Module, path: Path) -> None:
    raise AssertionError("all has been measured")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "0"}, r"^path: expected a history measured with layers = 0, .* got one with layers = None$"),
        ({"centering": "per_output"}, r"^path: expected a history with the centering of this tracker"),
        ({"outputs": "trace"}, r"outputs = trace"),
        ({"statistics": ["stable_rank"]}, r"statistics = stable_rank"),
        ({"products": 10}, r"products = 10"),
        ({"steps": [0, 6, 10]}, r"^history: expected the steps \[0, 6\] of these checkpoints, got \[0, 5\] in "),
    ],
)
def test_a_history_of_something_else_is_refused(
    series: list[Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "run.json"
    measured(series[:2], history=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        measured(series, history=path, **options)
    assert path.read_bytes() == before


def test_other_weights_and_other_models_are_refused(series: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    measured(series, history=path)
    before = path.read_bytes()

    def wider() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    with pytest.raises(ValueError, match=r"^path: expected a history measured with model = Sequential with 6 param"):
        ah.measure_checkpoints(wider, series, X, Y, history=path, progress=False)
    torch.save(network(99).state_dict(), series[1])  # trained anew
    with pytest.raises(ValueError, match=r"^history: expected measurements of these checkpoints, .* step 5 than '.*'"):
        measured(series, history=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=1-val_loss=0.50", 1),
        ("epoch_2_acc_0.95", 2),
        ("epoch=3-step=120", 120),
        ("epoch=0-step=10-v1", 10),
        ("Iteration-7", 7),
        ("weights12", 12),
        ("ck-5-fp16", None),
        ("step_10k", None),
        ("step_1e3", None),
        ("acc_0.93", None),
        ("last", None),
        ("step1-step2", None),
    ],
)
def test_steps_in_names(name: str, step: int | None, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.ckpt"
    torch.save(network().state_dict(), path)
    if step is None:
        with pytest.raises(ValueError, match=r"^paths: expected a step .*; pass steps=$"):
            measured([path])
    else:
        assert measured([path]).steps == [step]


def test_other_samples_or_labels_are_refused(series: list[Path], tmp_path: Path) -> None:
    measured(series[:2], history=tmp_path / "run.json")
    for x, y, name in ((X.flip(0), Y, "x"), (X, Y.flip(0), "y")):
        with pytest.raises(ValueError, match=rf"^path: expected a history measured with {name} = "):
            ah.measure_checkpoints(network, series, x, y, history=tmp_path / "run.json", progress=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda paths: [], ValueError, r"^paths: expected at least one checkpoint, got none$"),
        (lambda paths: [*paths, "nowhere.pt"], FileNotFoundError, r"^paths: expected files, got 'nowhere.pt', which"),
        (lambda paths: [paths[0], paths[0]], ValueError, r"^steps: expected each once, got 0 for '.*' and '"),
        (
            lambda paths: [paths[0].rename(paths[0].with_name("last.pt"))],
            ValueError,
            r"^paths: expected a step as a whole number in the name of each file, .*last.pt'; pass steps=$",
        ),
    ],
)
def test_paths_that_are_not_clear(
    series: list[Path], change: Callable[[list[Path]], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measured(change(series))


def test_number_of_steps(series: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"^steps: expected one for each of the 3 checkpoints, got 2$"):
        measured(series, steps=[1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "which cannot be read"),
        (b"no checkpoint", "which cannot be read"),
        ({"epoch": 3}, r"with \['epoch'\]$"),
        ([1, 2], "with list$"),
        ({"weight": torch.ones(2)}, "expected the weights of the model, a Sequential, got"),
        ({3: torch.ones(2)}, r"with \[3\]$"),
        (nn.Linear(2, 3), "which cannot be read"),  # a pickle, which is never loaded
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "3.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"^paths: expected .*got '{re.escape(str(path))}'.*") as caught:
        measured([path], history=tmp_path / "run.json")
    assert re.search(message, str(caught.value), re.DOTALL)
    assert not (tmp_path / "run.json").exists()


def test_no_bit_of_the_weights_can_change(tmp_path: Path) -> None:
    path = tmp_path / "3.pt"
    torch.save(network(7).state_dict(), path)
    whole, model = path.read_bytes(), network()
    at = whole.index(network(7).state_dict()["0.weight"].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(
        ValueError, match=r"^paths: expected a checkpoint .*3.pt'.*has changed since it was written, as its"
    ):
        checkpoints.load_weights(model, path)
    assert all(map(torch.equal, model.state_dict().values(), network().state_dict().values()))
    torch.save(network(7).state_dict(), path, _use_new_zipfile_serialization=False)  # of before torch 1.6
    checkpoints.load_weights(model, path)
    assert all(map(torch.equal, model.state_dict().values(), network(7).state_dict().values()))


def test_a_csv_cannot_be_resumed(series: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^history: expected .json or .npz, which have all settings in them, got"):
        measured(series, history=tmp_path / "run.csv")


def test_a_diverged_checkpoint_ends_the_series_and_keeps_the_rest(series: list[Path], tmp_path: Path) -> None:
    state = network().state_dict()
    state["0.weight"][0, 0] = math.nan
    torch.save(state, series[2])
    with pytest.raises(ah.NonFiniteError, match=rf"weights of '{re.escape(str(series[2]))}'; leave it out of paths$"):
        measured(series, history=tmp_path / "run.json")
    assert ah.AlignmentHistory.load(tmp_path / "run.json").steps == [0, 5]


def test_arguments_of_another_type(series: list[Path]) -> None:
    with pytest.raises(TypeError, match=r"^paths: expected a sequence of files, got '.*'; write \['.*'\]$"):
        measured(series[0])
    with pytest.raises(TypeError, match=r"^make_model: expected a function that makes the model, got Sequential;"):
        ah.measure_checkpoints(network(), series, X, Y)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"^paths: expected files, got '.*', which is a folder$"):
        measured([series[0].parent])
    with pytest.raises(TypeError, match=r"^load: expected a function that puts the weights of a file into the model"):
        measured(series, load=lambda model, path: torch.load(path, weights_only=True))
