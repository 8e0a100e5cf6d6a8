"""The callback for Lightning, in real runs: steps, loggers, resuming, training that does not change, devices."""

from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ahkernels as ah
from ahkernels.capture.twin import Twin
from python_tests.integrations.same_bits import same, same_history

lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
callbacks = pytest.importorskip("ahkernels.integrations.lightning")

AlignmentCallback = callbacks.AlignmentCallback
X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.arange(8) % 2
SAMPLES = 20  # 5 batches of 4 in an epoch


class Module(lightning.LightningModule):
    """A network, that is sensitive to modes and random numbers if asked to be, and the losses of its batches."""

    def __init__(self, *, sensitive: bool = False, dictionary: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        between = [nn.BatchNorm1d(6), nn.Dropout(0.5)] if sensitive else []
        self.net = nn.Sequential(nn.Linear(3, 6), *between, nn.Tanh(), nn.Linear(6, 2))
        self.dictionary = dictionary
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("train_loss", loss)
        return {"loss": loss} if self.dictionary else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def loader(*, shuffle: bool = False, repeat: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(SAMPLES, 3, generator=generator), torch.randint(2, (SAMPLES,), generator=generator)
    if repeat:  # one batch again and again
        x, y = x[:4].repeat(5, 1), y[:4].repeat(5)
    return DataLoader(TensorDataset(x, y), 4, shuffle=shuffle)


def trainer(folder: Path, *own: Any, **options: Any) -> Any:
    defaults = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "max_epochs": 2,
    }
    return lightning.Trainer(callbacks=list(own), **(defaults | options))


# ---- steps


def test_an_optimiser_step_is_measured_once(tmp_path: Path) -> None:
    callback, module = AlignmentCallback(X, Y, every=1), Module()
    trainer(tmp_path, callback, accumulate_grad_batches=2).fit(module, loader())
    assert callback.tracker.steps == list(range(7)), "5 batches are 3 steps, as the last one is by itself"
    losses = module.losses
    batches = [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)]  # of each step
    expected = [sum(losses[start:end]) / (end - start) for start, end in batches]
    assert callback.tracker.history[0].metrics == {}
    found = [row.metrics["loss"] for row in callback.tracker.history[1:]]
    assert found == pytest.approx(expected, rel=1e-6)


def test_measures_the_model_after_the_step(tmp_path: Path) -> None:
    callback, module = AlignmentCallback(X, Y, steps=[0, 10], centering="per_output"), Module(sensitive=True)
    before = ah.layerwise_alignment(Module(sensitive=True).eval(), X, Y, centering="per_output")
    trainer(tmp_path, callback).fit(module, loader())
    after = ah.layerwise_alignment(module.eval(), X, Y, centering="per_output")
    assert callback.tracker.layers == after.layers
    assert torch.equal(callback.tracker.cka, torch.stack([before.cka, after.cka]))


def test_validation_is_not_measured_and_its_metrics_are_kept(tmp_path: Path) -> None:
    callback = AlignmentCallback(X, Y, steps=[0, 5, 6, 10], metrics=["val_loss", "train_loss"])
    module = Module(dictionary=True)
    trainer(tmp_path, callback, num_sanity_val_steps=2).fit(module, loader(), loader())
    assert callback.tracker.steps == [0, 5, 6, 10]
    names = [sorted(row.metrics) for row in callback.tracker.history]
    assert names[1:] == [["loss", "train_loss"], *[["loss", "train_loss", "val_loss"]] * 2]
    assert callback.tracker.history[3].metrics["train_loss"] == pytest.approx(module.losses[9])


def test_two_optimisers_by_hand(tmp_path: Path) -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[at].parameters(), lr=0.1) for at in (0, 2)]

    callback = AlignmentCallback(X, Y, every=3)
    trainer(tmp_path, callback, max_epochs=1).fit(Manual(), loader())
    assert callback.tracker.steps == [0, 4, 6, 10]


@pytest.mark.parametrize(("module", "layers"), [("", ["net.0", "net.2"]), ("net", ["0", "2"]), ("net.0", ["(root)"])])
def test_a_part_of_the_module(tmp_path: Path, module: str, layers: list[str]) -> None:
    outputs = 6 if module == "net.0" else 2
    callback = AlignmentCallback({"input": X} if module else X, torch.randn(8, outputs), every=5, module=module)
    trainer(tmp_path, callback).fit(Module(), loader())
    assert callback.tracker.layers == layers


# ---- logging


class Scalars:
    """A writer of one's own."""

    def __init__(self) -> None:
        self.tags: list[tuple[str, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.tags.append((tag, step))


def test_all_loggers_get_the_alignments(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer, loggers = Scalars(), [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    callback = AlignmentCallback(X, Y, every=5, module="net", writer=writer, tag="ntk")
    trainer(tmp_path, callback, logger=loggers).fit(Module(), loader())
    cka = callback.tracker.cka
    with (Path(loggers[0].log_dir) / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ntk/0"]]
    assert [int(row["step"]) for row in rows] == [0, 5, 10]
    assert [[float(row["ntk/0"]), float(row["ntk/2"])] for row in rows] == cka.tolist()
    events = EventAccumulator(loggers[1].log_dir).Reload()
    for column, layer in enumerate(["0", "2"]):
        scalars = events.Scalars(f"ntk/{layer}")
        assert [one.step for one in scalars] == [0, 5, 10]
        assert [one.value for one in scalars] == cka[:, column].float().tolist()
    assert "loss" not in events.Tags()["scalars"], "the module logs its own"
    assert writer.tags == [(f"ntk/{n}", 0) for n in (0, 2)] + [
        (tag, step) for step in (5, 10) for tag in ("ntk/0", "ntk/2", "loss")
    ]


# ---- resuming


def checkpoints(folder: Path, every: int) -> Any:
    return lightning.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)


# At the end of an epoch, and within one, where Lightning begins again with the first batch.
@pytest.mark.parametrize(
    ("accumulate", "stopped", "within"), [(1, 5, False), (1, 3, True), (2, 3, False), (2, 2, True)]
)
def test_a_resumed_run_has_the_history_of_a_whole_one(
    tmp_path: Path, accumulate: int, stopped: int, within: bool
) -> None:
    def run(folder: Path, **options: Any) -> tuple[Any, Module]:
        callback, module = AlignmentCallback(X, Y, every=2, metrics=["train_loss"]), Module()
        saving = checkpoints(folder, stopped)
        fitted = trainer(folder, callback, saving, accumulate_grad_batches=accumulate, enable_checkpointing=True)
        fitted.fit(module, loader(repeat=within), **options)
        return callback.tracker, module

    whole, module = run(tmp_path / "whole")
    tracker, resumed = run(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / f"step={stopped}.ckpt")
    assert len(whole.steps) >= 4
    assert len(resumed.losses) < len(module.losses)
    assert same_history(tracker, whole)
    assert same(resumed.state_dict(), module.state_dict())


def test_two_callbacks_keep_their_own_histories(tmp_path: Path) -> None:
    def pair() -> list[Any]:
        return [AlignmentCallback(X, Y, every=5, module=part, tag=part or "all") for part in ("", "net")]

    first = pair()
    fitted = trainer(tmp_path, *first, max_epochs=1)
    fitted.fit(Module(), loader())
    fitted.save_checkpoint(tmp_path / "run.ckpt")
    second = pair()
    trainer(tmp_path, *second).fit(Module(), loader(), ckpt_path=tmp_path / "run.ckpt")
    for one, other in zip(first, second, strict=True):
        assert other.tracker.steps == [0, 5, 10]
        assert same(other.tracker.state_dict()["measurements"][:2], one.tracker.state_dict()["measurements"])
    assert first[0].tracker.layers == ["net.0", "net.2"] and first[1].tracker.layers == ["0", "2"]


def test_a_checkpoint_without_a_history(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Module(), loader())
    fitted.save_checkpoint(tmp_path / "run.ckpt")
    callback = AlignmentCallback(X, Y, every=4)
    trainer(tmp_path, callback).fit(Module(), loader(), ckpt_path=tmp_path / "run.ckpt")
    assert callback.tracker.steps == [5, 8]


def test_another_run_begins_a_new_history(tmp_path: Path) -> None:
    callback, runs = AlignmentCallback(X, Y, every=5), []
    for _ in range(2):
        trainer(tmp_path, callback).fit(Module(), loader())
        runs.append(callback.tracker)
    assert runs[0] is not runs[1] and runs[0].model is not runs[1].model
    assert same_history(*runs) and runs[1].steps == [0, 5, 10]


# ---- training


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_the_same_without_the_callback(tmp_path: Path, accumulate: int) -> None:
    def run(*own: Any) -> Module:
        module = Module(sensitive=True)
        torch.manual_seed(1)
        trainer(tmp_path, *own, accumulate_grad_batches=accumulate).fit(module, loader(shuffle=True))
        return module

    module, without = run(AlignmentCallback(X, Y, every=1)), run()
    assert module.losses == without.losses
    assert same(module.state_dict(), without.state_dict())


def test_the_trainer_is_not_copied(tmp_path: Path) -> None:
    """A LightningModule refers to its trainer, and through it to the data, the optimisers and the callbacks."""

    class Trainer(lightning.Trainer):
        """One of one's own."""

    module = Module()
    fitted = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, fast_dev_run=True)
    fitted.fit(module, loader())
    twin = Twin(module).model
    assert twin is not module and twin.trainer is fitted


# ---- several devices


class Ranks(lightning.Callback):
    """Writes what each rank has kept to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        (callback,) = [one for one in trainer.callbacks if isinstance(one, AlignmentCallback)]
        torch.save(callback.tracker.state_dict(), self.folder / f"{trainer.global_rank}.pt")


class Lines:
    """A writer that appends to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{tag} {step}\n")


@pytest.mark.parametrize("options", [{}, {"process_group": "world", "shard": "layers"}], ids=["alone", "together"])
def test_two_devices(tmp_path: Path, options: dict[str, Any]) -> None:
    callback = AlignmentCallback(X, Y, every=2, module="net", writer=Lines(tmp_path / "lines"), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking and of the sampler
        fitted = trainer(tmp_path, callback, Ranks(tmp_path), devices=2, strategy="ddp_fork", max_epochs=1)
        fitted.fit(Module(), loader())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert [row["step"] for row in first["measurements"]] == [0, 2]
    assert same(first, second), "the loss is the mean over the ranks"
    assert (tmp_path / "lines").read_text().split("\n")[:-1] == [
        *("alignment/0 0", "alignment/2 0"),
        *("alignment/0 2", "alignment/2 2", "loss 2"),
    ]


# ---- the package pytorch_lightning alone

OLDER = """
import sys
sys.modules["lightning"] = None  # as if it were not installed
import pytorch_lightning, torch
from ahkernels.integrations.lightning import AlignmentCallback

class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

x, y = torch.randn(8, 3), torch.arange(8) % 2
data = torch.utils.data.TensorDataset(x, y)
callback = AlignmentCallback(x, y, every=2)
trainer = pytorch_lightning.Trainer(
    max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Module(), torch.utils.data.DataLoader(data, 2))
print(callback.tracker.steps)
"""


def test_pytorch_lightning_where_lightning_is_missing() -> None:
    pytest.importorskip("pytorch_lightning", exc_type=ImportError)
    done = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[0, 2, 4]"], done.stderr


# ---- bad arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "every, steps: expected one of them, got neither"),
        ({"every": 0}, ValueError, "every: expected at least 1"),
        ({"every": 1, "module": Module}, TypeError, "module: expected the name of a part of the model, got type"),
        ({"every": 1, "metrics": "val_loss"}, TypeError, "metrics: expected a sequence of names, got 'val_loss'"),
        ({"every": 1, "centering": "both"}, ValueError, "centering: "),
        ({"every": 1, "writer": "runs"}, TypeError, "writer: expected an object with add_scalar"),
        ({"every": 1, "layer": "fc"}, TypeError, "layer: expected no such option; nearest: layers"),
        ({"every": 1, "process_group": "all"}, TypeError, "process_group: expected a group of torch.distributed"),
        ({"every": 1, "x": [1.0]}, TypeError, "x: expected a tensor"),
        ({"every": 1, "y": [0, 1]}, TypeError, "y: expected a tensor of class indices"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        AlignmentCallback(arguments.pop("x", X), arguments.pop("y", Y), **arguments)
    assert str(caught.value).startswith(message)


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    callback = AlignmentCallback(X, Y, every=1, module="nett")
    with pytest.raises(
        ValueError, match=r"^module: expected the name of a part of Module, got 'nett'; nearest: \['net'"
    ):
        trainer(tmp_path, callback).fit(Module(), loader())
