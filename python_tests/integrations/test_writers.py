"""Writers for W&B, offline, and MLflow, with its database; and TensorBoard's, which is one: real runs, with resume."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ahkernels as ah
from ahkernels.integrations.writers import MLflowWriter, WandbWriter, _allowed, _unused

X, Y = torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2


class Scaled(torch.nn.Module):
    """A network with parameters of its own, whose layer is called "(root)"."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc = torch.nn.Parameter(torch.ones(2)), torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale


def tracker(writer: Any, **options: Any) -> ah.AlignmentTracker:
    torch.manual_seed(0)
    return ah.AlignmentTracker(Scaled(), X, Y, writer=writer, **options)


# ---- TensorBoard


def test_tensorboard_resumed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        first = tracker(writer)
        first.update(0)
        state = first.state_dict()  # of the checkpoint
        first.update(5, loss=0.5)  # lost with the process
    with SummaryWriter(tmp_path, purge_step=1) as writer:
        second = tracker(writer)
        second.load_state_dict(state)
        second.update(4, loss=math.nan)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("alignment/fc")] == [
        (row.step, pytest.approx(row.report["fc"])) for row in second.history
    ]
    assert [one.step for one in events.Scalars("loss")] == [4]


# ---- W&B


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return module


def wandb_rows(folder: Path) -> tuple[list[dict[str, float]], dict[str, str]]:
    """The rows of the only run in a folder, and the x axis of each metric."""
    pytest.importorskip("wandb").teardown()  # which waits for the process that writes the file
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows, axes = [], {}
    for record in wandb_records(path.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): float(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
        elif record.WhichOneof("record_type") == "metric":
            axes[record.metric.name] = record.metric.step_metric
    return rows, axes


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records in the file of a run: after a header of 7 bytes, pieces within blocks of 32 KiB, as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, text = 7, b""
    while position < len(data):
        left = -position % 32768
        if 0 < left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        text += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record()
            record.ParseFromString(text)
            yield record
            text = b""


def test_wandb_rows_of_their_own(wandb: Any, tmp_path: Path) -> None:
    with wandb.init(mode="offline", dir=tmp_path) as run:
        own = tracker(WandbWriter(run))
        for step in (0, 10, 20):
            own.update(step, loss=0.5)
    rows, axes = wandb_rows(tmp_path)
    layers = ["alignment/(root)", "alignment/fc"]
    assert [[row["alignment/step"], *(row[layer] for layer in layers), row["loss"]] for row in rows] == [
        [row.step, *row.report.cka.tolist(), 0.5] for row in own.history
    ]
    assert axes == dict.fromkeys([*layers, "loss"], "alignment/step")


@pytest.mark.parametrize("explicit", [True, False])
def test_wandb_rows_of_the_program_are_not_lost(wandb: Any, tmp_path: Path, explicit: bool) -> None:
    """W&B drops what is logged at a step below its own count, which goes up with each row."""
    with wandb.init(mode="offline", dir=tmp_path) as run:
        own = tracker(WandbWriter(), layers="fc")
        for step in range(6):
            if step != 3:
                own.update(step)
            if step % 2 == 0:
                run.log({"accuracy": step / 10}, **({"step": step} if explicit else {}))
    rows, _ = wandb_rows(tmp_path)
    assert [row["accuracy"] for row in rows if "accuracy" in row] == [0.0, 0.2, 0.4]
    found = {row["alignment/step"]: row["alignment/fc"] for row in rows if "alignment/fc" in row}
    assert found == dict(zip(own.steps, own.cka[:, 0].tolist(), strict=True))


def test_wandb_resumed(wandb: Any, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    with wandb.init(mode="offline", dir=folders[0], id="abc") as run:
        first = tracker(WandbWriter(run), layers="fc")
        first.update(0)
    with wandb.init(mode="offline", dir=folders[1], id="abc", resume="allow") as run:
        second = tracker(WandbWriter(run), layers="fc")
        second.load_state_dict(first.state_dict())
        second.update(7)
    assert second.steps == [0, 7]
    assert [[row["alignment/step"] for row in wandb_rows(folder)[0]] for folder in folders] == [[0], [7]]


def test_wandb_needs_a_run(wandb: Any) -> None:
    with pytest.raises(ValueError, match=r"^run: expected a run of W&B, found none; call wandb.init\(\) first$"):
        WandbWriter()


# ---- MLflow


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = pytest.importorskip("mlflow")
    before = module.get_tracking_uri()
    module.set_tracking_uri(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
    yield module
    module.set_tracking_uri(before)


def mlflow_metric(mlflow: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in mlflow.MlflowClient().get_metric_history(run_id, name)]


def test_mlflow_resumed(mlflow: Any) -> None:
    with mlflow.start_run() as run:
        writer = MLflowWriter()
        first = tracker(writer)
        first.update(0, loss=math.nan)
        writer.flush()
    with mlflow.start_run(run_id=run.info.run_id):
        second = tracker(MLflowWriter())
        second.load_state_dict(first.state_dict())
        second.update(5, loss=0.5)
        mlflow.flush_async_logging()
    for column, name in enumerate(["alignment/_root_", "alignment/fc"]):
        expected = list(zip([0, 5], second.cka[:, column].tolist(), strict=True))
        assert mlflow_metric(mlflow, run.info.run_id, name) == expected
    (_, at_first), last = mlflow_metric(mlflow, run.info.run_id, "loss")
    assert math.isnan(at_first) and last == (5, 0.5)


def test_mlflow_names_stay_apart(mlflow: Any) -> None:
    with mlflow.start_run() as run:
        writer = MLflowWriter(run.info.run_id)
        for value, tag in enumerate(["a/(root)", "a/_root_", "a/[root]", "a/(root)"]):
            writer.add_scalar(tag, float(value), 0 if value < 3 else 1)
        writer.flush()
    found = [mlflow_metric(mlflow, run.info.run_id, name) for name in ("a/_root_", "a/_root__2", "a/_root__3")]
    assert found == [[(0, 0.0), (1, 3.0)], [(0, 1.0)], [(0, 2.0)]]


def test_mlflow_errors_are_raised_at_the_next_step(mlflow: Any) -> None:
    with mlflow.start_run() as run:
        writer = MLflowWriter()
    mlflow.delete_run(run.info.run_id)  # which takes no metrics from now on
    writer.add_scalar("loss", 1.0, 0)
    with pytest.raises(mlflow.exceptions.MlflowException, match="active"):
        writer.add_scalar("loss", 1.0, 1)


def test_mlflow_needs_a_run(mlflow: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^run_id: expected that of a run of MLflow, found no active one; call mlflow"
    ):
        MLflowWriter()


@given(st.text() | st.text("./(a", max_size=8) | st.text("/.a", min_size=240, max_size=260))
def test_mlflow_takes_every_name(tag: str) -> None:
    validation = pytest.importorskip("mlflow.utils.validation")
    for name in (_allowed(tag), _unused(_allowed(tag), {_allowed(tag)})):
        validation._validate_metric_name(name)
        assert 0 < len(name) <= validation.MAX_ENTITY_KEY_LENGTH


@pytest.mark.parametrize("name", ["loss", "alignment/blocks.0.attn-qkv", "alignment/per_output/fc 1"])
def test_names_that_mlflow_takes_stay(name: str) -> None:
    assert _allowed(name) == name
