"""AlignmentTracker: history, checks, writer, files, resuming, plot, and leaving the training alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ahkernels import tracker as tracker_module
from ahkernels.capture import CaptureOptions
from ahkernels.layerwise import AlignmentOptions
from ahkernels.report import AlignmentReport
from ahkernels.tracker import AlignmentTracker

NAN = math.nan
GRAMS = ("forward_cka", "backward_cka")
X, Y = torch.linspace(-1, 1, 8).reshape(4, 2), torch.tensor([0, 1, 2, 0])


class FakeMeasurement:
    """Stands in for layerwise_alignment: numbers that depend on the call; "dead" is always nan."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], AlignmentOptions]] = []
        self.layers = ["fc1", "dead", "fc2"]
        self.on_call: Callable[[nn.Module], None] = lambda model: None

    def __call__(
        self, model: nn.Module, x: Any, y: Any, options: AlignmentOptions, one_warning: Any, *, evaluating: bool
    ) -> dict[str, AlignmentReport]:
        assert evaluating
        self.calls.append(((model, x, y), options))
        self.on_call(model)
        cka = torch.rand(len(self.layers), generator=torch.Generator().manual_seed(len(self.calls)))
        cka = torch.where(torch.tensor([name == "dead" for name in self.layers]), NAN, cka.double())
        parts = {"forward_cka": cka / 3, "backward_cka": cka / 7}
        asked = {name: parts[name] for name in options.statistics if name in parts}
        return {
            one: AlignmentReport(
                self.layers,
                {"cka": cka, "centered_norm": 10 * cka, "trace": 100 * cka, **asked},
                len(x),
                "all",
                "highest",
                one,
            )
            for one in options.centerings
        }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMeasurement:
    fake = FakeMeasurement()
    monkeypatch.setattr(tracker_module, "alignment_reports", fake)
    return fake


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 3))


def make(**options: Any) -> AlignmentTracker:
    return AlignmentTracker(network(), X, Y, **options)


def filled(**options: Any) -> AlignmentTracker:
    tracker = make(**options)
    tracker.update(0, loss=1 / 3)
    tracker.update(10, loss=NAN, accuracy=0.5)
    tracker.update(100)
    return tracker


class Writer:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, nan being equal to nan."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, -7.0), torch.nan_to_num(b, -7.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


# ---- update


def test_update_measures_with_the_given_options(fake: FakeMeasurement) -> None:
    tracker = make(
        layers=["fc*"], outputs="trace", precision="high", memory_budget=1 << 20, statistics=GRAMS, products=30
    )
    report = tracker.update(3).report
    (model, x, y), options = fake.calls[0]
    assert model is tracker.model and x is X and y is Y
    capture = CaptureOptions(layers=["fc*"], outputs="trace", precision="high", memory_budget=1 << 20)
    assert options == AlignmentOptions(("global",), GRAMS, 30, None, capture)
    assert tracker.history[0].report is report


def test_history(fake: FakeMeasurement) -> None:
    tracker = filled()
    assert tracker.steps == [0, 10, 100]
    assert tracker.layers == ["fc1", "dead", "fc2"]
    assert tracker.cka.shape == (3, 3) and tracker.cka.dtype == torch.float64
    assert tracker.cka[:, 1].isnan().all() and not tracker.cka[:, [0, 2]].isnan().any()
    assert tracker.history[0].metrics == {"loss": 1 / 3}
    assert tracker.history[2].metrics == {}


def test_empty_history() -> None:
    tracker = make()
    assert tracker.steps == [] and tracker.layers == [] and tracker.cka.shape == (0, 0)


@pytest.mark.parametrize("step", [10, 9])
def test_steps_must_increase(fake: FakeMeasurement, step: int) -> None:
    tracker = make()
    tracker.update(10)
    with pytest.raises(ValueError, match=f"^step: expected more than 10, the last one, got {step}$"):
        tracker.update(step)
    assert tracker.steps == [10] and len(fake.calls) == 1, "refused before measuring"


def test_steps_are_integers(fake: FakeMeasurement) -> None:
    tracker = make()
    with pytest.raises(TypeError, match=r"^step: expected an integer, got float$"):
        tracker.update(1.5)  # type: ignore[arg-type]
    tracker.update(np.int64(4))  # type: ignore[arg-type]
    assert type(tracker.steps[0]) is int


@pytest.mark.parametrize("value", [torch.tensor(0.5, requires_grad=True), np.float32(0.5), 0.5])
def test_metrics_become_floats(fake: FakeMeasurement, value: Any) -> None:
    tracker = make()
    tracker.update(0, loss=value)
    assert tracker.history[0].metrics == {"loss": 0.5}
    assert type(tracker.history[0].metrics["loss"]) is float


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("0.5", "str"),
        (None, "NoneType"),
        (1j, "complex"),
        ([0.5], "list"),
        (torch.zeros(1), r"a tensor of shape \[1\] and dtype torch.float32"),
        (torch.tensor(1j), r"a tensor of shape \[\] and dtype torch.complex64"),
    ],
)
def test_metrics_must_be_real_numbers(fake: FakeMeasurement, value: Any, got: str) -> None:
    tracker = make()
    with pytest.raises(TypeError, match=f"^accuracy: expected a real number or a 0-d tensor, got {got}"):
        tracker.update(0, accuracy=value)
    assert not fake.calls and not tracker.history


@pytest.mark.parametrize("layers", [["fc1", "other"], ["fc1", "dead", "other"], ["dead", "fc1", "fc2"]], ids=str)
def test_layers_must_stay_the_same(fake: FakeMeasurement, layers: list[str]) -> None:
    tracker = filled()
    fake.layers = layers
    with pytest.raises(ValueError, match=r"^model: expected the layers .*'dead'.*, got " + re.escape(str(layers))):
        tracker.update(200)
    assert tracker.steps == [0, 10, 100]


# ---- leaving the model as it was


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


SEEN: list[bool] = []


class Noting(nn.Module):
    """Notes the mode in which it is called; not in an attribute, which a measurement would keep to itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(self.training)
        return x


def test_measures_in_eval_mode_and_leaves_every_flag() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), Noting())
    model[1].eval()  # a frozen normalisation in a network in training
    before = flags(model)
    SEEN.clear()
    AlignmentTracker(model, X, Y).update(0)
    assert SEEN and not any(SEEN)
    assert flags(model) == before == [True, True, False, True, True]


def test_flags_come_back_after_an_error(fake: FakeMeasurement) -> None:
    def fail(model: nn.Module) -> None:
        raise RuntimeError("no memory")

    tracker = make()
    tracker.model[1].eval()  # type: ignore[index]
    before = flags(tracker.model)
    fake.on_call = fail
    with pytest.raises(RuntimeError, match="no memory"):
        tracker.update(0)
    assert flags(tracker.model) == before
    assert not tracker.history, "the step can be tried again"
    fake.on_call = lambda model: None
    tracker.update(0)


def test_an_overridden_train_is_not_called(fake: FakeMeasurement) -> None:
    class Sensitive(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            raise AssertionError("train() may have side effects")

    AlignmentTracker(nn.Sequential(Sensitive(2, 3)), X, Y).update(0)


def train(tracked: bool) -> tuple[list[torch.Tensor], list[float]]:
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tracker = AlignmentTracker(model, X, Y, layers=["0", "4"])
    losses = []
    for step in range(5):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        if tracked:  # between backward and step: gradients must survive, too
            tracker.update(step, loss=loss)
        optimiser.step()
        losses.append(loss.item())
    return [value.clone() for value in model.state_dict().values()], losses


def test_training_goes_on_as_without_a_tracker() -> None:
    weights, losses = train(tracked=True)
    expected_weights, expected_losses = train(tracked=False)
    assert losses == expected_losses
    assert all(map(torch.equal, weights, expected_weights))


# ---- writer


def test_writer_gets_layers_and_metrics(fake: FakeMeasurement) -> None:
    writer = Writer()
    report = make(writer=writer, tag="ntk").update(7, loss=0.5).report
    assert [(tag, step) for tag, _, step in writer.scalars] == [
        ("ntk/fc1", 7),
        ("ntk/dead", 7),
        ("ntk/fc2", 7),
        ("loss", 7),
    ]
    values = [value for _, value, _ in writer.scalars]
    assert values[0] == report["fc1"] and math.isnan(values[1]) and values[3] == 0.5
    assert all(type(value) is float for value in values)


def test_a_writer_that_fails_loses_no_measurement(fake: FakeMeasurement) -> None:
    class Broken(Writer):
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            raise OSError("no space left")

    tracker = make(writer=Broken())
    with pytest.raises(OSError, match="no space left"):
        tracker.update(3)
    assert tracker.steps == [3]


def test_several_centerings_are_kept_side_by_side(fake: FakeMeasurement, tmp_path: Path) -> None:
    writer, both = Writer(), ("per_output", "global")
    tracker = make(writer=writer, centering=both)
    measurement = tracker.update(0)
    assert list(tracker.history) == [measurement] and list(measurement.reports) == list(both)
    assert measurement.report is measurement.reports["per_output"]
    assert [tag for tag, _, _ in writer.scalars] == [
        f"alignment/{one}/{layer}" for one in both for layer in ("fc1", "dead", "fc2")
    ]
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = make(centering=both)
    other.load_state_dict(state)
    assert same(other.state_dict(), tracker.state_dict())
    other.update(1)
    with pytest.raises(ValueError, match=r"^state: expected a history with the centering of this"):
        make().load_state_dict(state)


@pytest.mark.parametrize("change", ["empty", "missing", "swapped"])
def test_a_state_of_other_centerings_is_refused(fake: FakeMeasurement, change: str) -> None:
    tracker = make(centering=("global", "per_output"))
    tracker.update(0)
    tracker.update(1)
    state = tracker.state_dict()
    reports = state["measurements"][1]["reports"]
    if change == "empty":
        reports.clear()
    elif change == "missing":
        del reports["per_output"]
    else:
        reports["global"], reports["per_output"] = reports["per_output"], reports["global"]
    other = make(centering=("global", "per_output"))
    with pytest.raises(ValueError, match=r"^state: expected "):
        other.load_state_dict(state)
    assert len(other.history) == 0


def test_strings_of_numpy_become_plain_ones(fake: FakeMeasurement) -> None:
    tracker = make(centering=np.str_("per_output"))  # type: ignore[arg-type]
    tracker.update(0)
    assert [type(key) for key in tracker.state_dict()["measurements"][0]["reports"]] == [str]


def test_one_centering_in_a_sequence_gives_a_dictionary_and_plain_names(fake: FakeMeasurement) -> None:
    tracker = make(centering=["per_output"])
    writer = Writer()
    tracker.writer = writer
    assert list(tracker.update(0).reports) == ["per_output"]
    assert writer.scalars[0][0] == "alignment/fc1"


def test_writer_is_checked_at_construction() -> None:
    with pytest.raises(TypeError, match=r"^writer: expected an object with add_scalar\(.*\), got str$"):
        make(writer="runs/")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            torch.randn(6, 4),
            [0, 1, 2, 0, 1, 2],
            "y: expected a tensor of class indices [n] or targets [n, o], got list",
        ),
        (torch.randn(6, 4), None, "y: expected a tensor of class indices [n] or targets [n, o], got NoneType"),
        ("images", torch.arange(6), "x: expected a tensor [n, ...], or a tuple, dict or dataclass of them, got str"),
        ((torch.randn(6, 4), torch.randn(5, 4)), torch.arange(6), "x[1]: expected 6 samples in the first dimension"),
    ],
    ids=["list", "no labels", "text", "lengths"],
)
def test_samples_and_labels_are_checked_at_construction(x: Any, y: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        AlignmentTracker(torch.nn.Linear(4, 3), x, y)
    assert str(raised.value).startswith(message)


# ---- resuming


def test_state_survives_a_safe_load_and_the_run_goes_on(fake: FakeMeasurement, tmp_path: Path) -> None:
    tracker = filled(statistics=GRAMS)
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    resumed = make(statistics=GRAMS)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(resumed.state_dict(), tracker.state_dict())

    with pytest.raises(ValueError, match="step: expected more than 100"):
        resumed.update(100)
    resumed.update(200, loss=0.25)
    fake.calls.pop()  # the uninterrupted run now makes the very same call
    tracker.update(200, loss=0.25)
    assert same(resumed.state_dict(), tracker.state_dict())


def test_state_does_not_follow_later_updates(fake: FakeMeasurement) -> None:
    tracker = filled()
    state = tracker.state_dict()
    tracker.update(1000)
    assert len(state["measurements"]) == 3


def drop_report(state: dict[str, Any]) -> None:
    del state["measurements"][1]["reports"]


def swap_steps(state: dict[str, Any]) -> None:
    state["measurements"].reverse()


def rename_layers(state: dict[str, Any]) -> None:
    state["measurements"][2]["reports"]["global"]["layers"] = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (dict.clear, r"expected what to_dict\(\) of a history gives"),
        (drop_report, r"expected what to_dict\(\) of a history gives, .*'reports' is missing"),
        (swap_steps, "expected .*step: expected more than 100, the last one, got 10"),
        (rename_layers, "expected .*model: expected the layers of the history"),
    ],
)
def test_bad_state_is_refused_and_changes_nothing(
    fake: FakeMeasurement, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    state = filled().state_dict()
    damage(state)
    tracker = make()
    tracker.update(5)
    with pytest.raises(ValueError, match=f"^state: .*{message}"):
        tracker.load_state_dict(state)
    assert tracker.steps == [5]


# ---- plot


def test_plot_draws_the_history_on_two_axes(fake: FakeMeasurement) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = pyplot.subplots(1, 2)[1]
    tracker = filled()
    assert tracker.plot(axes, null=0.1) is axes
    assert len(axes[0].lines) == len(tracker.layers)
    assert "null level" in [text.get_text() for text in axes[1].get_legend().get_texts()]
    pyplot.close("all")


def test_plot_needs_history(fake: FakeMeasurement) -> None:
    with pytest.raises(ValueError, match=r"history: expected at least one update\(\)"):
        make().plot()


# ---- what does not belong together


@pytest.mark.parametrize("change", ["x", "y"])
def test_samples_that_have_been_written_to_are_refused(fake: FakeMeasurement, change: str) -> None:
    x, y = X.clone(), Y.clone()
    tracker = AlignmentTracker(network(), x, y)
    tracker.update(0)
    {"x": x, "y": y}[change].zero_()
    with pytest.raises(ValueError, match=r"^x, y: expected the samples of the first measurement, got ones that have"):
        tracker.update(1)
    assert tracker.steps == [0]


def test_a_csv_does_not_say_what_it_was_measured_with(fake: FakeMeasurement, tmp_path: Path) -> None:
    filled().save(tmp_path / "run.csv")
    with pytest.raises(ValueError, match=r"^path: expected .json or .npz, which have all settings in them, got "):
        make().load(tmp_path / "run.csv")


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_a_history_of_another_model_is_refused(fake: FakeMeasurement, ending: str, tmp_path: Path) -> None:
    filled().save(tmp_path / f"run{ending}")
    other = AlignmentTracker(nn.Linear(2, 3), X, Y)
    with pytest.raises(ValueError, match=r"^path: expected a history measured with model = Linear with 2 parameters"):
        other.load(tmp_path / f"run{ending}")
    make().load(tmp_path / f"run{ending}")


def test_a_history_of_another_width_is_refused(fake: FakeMeasurement, tmp_path: Path) -> None:
    narrow, wide = (nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 3)) for width in (4, 5))
    tracker = AlignmentTracker(narrow, X, Y)
    tracker.update(0)
    tracker.save(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"^path: expected a history measured with model = Sequential with 4 param"):
        AlignmentTracker(wide, X, Y).load(tmp_path / "run.json")


def of_index(returned: torch.Tensor) -> torch.Tensor:
    return returned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "trace"}, "measured with outputs = trace, as from now on, got one with outputs = all$"),
        ({"outputs": [0, 1]}, r"measured with outputs = \[0, 1\]"),
        ({"output": of_index}, "measured with output = of_index, as from now on, got one with output = None$"),
        ({"centering": "per_output"}, "with the centering of this tracker"),
        ({"layers": "fc1"}, "measured with layers = fc1"),
        ({"precision": "medium"}, "measured with precision = medium"),
        ({"statistics": GRAMS}, "measured with statistics = forward_cka, backward_cka"),
        ({"products": 30}, "measured with products = 30"),
        ({"tolerance": 0.1}, "measured with tolerance = 0.1"),
    ],
)
@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_a_history_of_other_options_is_refused(
    fake: FakeMeasurement, ending: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    filled().history.save(tmp_path / f"run{ending}")  # which knows them as well as the tracker does
    other = make(**options)
    with pytest.raises(ValueError, match=f"^path: expected a history {message}"):
        other.load(tmp_path / f"run{ending}")
    assert len(other) == 0


def test_a_sequence_of_outputs_is_that_of_the_same_indices(fake: FakeMeasurement) -> None:
    state = filled(outputs=[0, 2]).state_dict()
    for report in (one["reports"]["global"] for one in state["measurements"]):
        report["outputs"] = [0, 2]
    make(outputs=(0, 2)).load_state_dict(state)


@pytest.mark.parametrize("name", ["layers", "outputs", "output", "precision", "centering", "statistics", "tolerance"])
def test_a_history_that_says_nothing_of_an_option_is_refused(fake: FakeMeasurement, name: str) -> None:
    state = filled().state_dict()
    del state["settings"][name]
    with pytest.raises(
        ValueError, match=f"^state: expected a history measured with {name} = .*got one with nothing said"
    ):
        make().load_state_dict(state)


def test_a_history_without_settings_is_held_to_its_reports(fake: FakeMeasurement) -> None:
    state = filled().state_dict()
    state["settings"] = {}
    make().load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state: expected a history with outputs = trace, .* with outputs = all$"):
        make(outputs="trace").load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state: expected a history with precision = high, .* = highest$"):
        make(precision="high").load_state_dict(state)


def test_a_model_of_the_same_parameters_and_other_modules_is_another(fake: FakeMeasurement) -> None:
    first, second = (
        AlignmentTracker(nn.Sequential(nn.Linear(2, 5), kind(), nn.Linear(5, 3)), X, Y) for kind in (nn.ReLU, nn.Tanh)
    )
    first.update(0)
    with pytest.raises(ValueError, match=r"^state: expected a history measured with model = "):
        second.load_state_dict(first.state_dict())


def test_a_history_of_other_estimates_is_refused(fake: FakeMeasurement) -> None:
    tracker = make(tolerance=0.1)
    tracker.update(0)
    for other in (make(), make(tolerance=0.2), make(tolerance=0.1, products=50)):
        with pytest.raises(ValueError, match=r"^state: expected a history measured with (tolerance|products) = "):
            other.load_state_dict(tracker.state_dict())
    make(tolerance=0.1).load_state_dict(tracker.state_dict())
