"""The callback for the Trainer of transformers, in real runs: steps, logs, resuming, training that does not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ahkernels as ah
from python_tests.integrations.same_bits import same, same_history

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
callbacks = pytest.importorskip("ahkernels.integrations.transformers")

AlignmentCallback = callbacks.AlignmentCallback
GENERATOR = torch.Generator().manual_seed(0)
WORDS, LABELS = (
    torch.randint(50, (16, 6), generator=GENERATOR),
    torch.randint(3, (16,), generator=GENERATOR),
)
PROBE = transformers.BatchEncoding({"input_ids": WORDS[:6], "attention_mask": torch.ones(6, 6, dtype=torch.long)})


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )  # with dropout
    return transformers.BertForSequenceClassification(config)


def callback(**options: Any) -> Any:
    return AlignmentCallback(PROBE, LABELS[:6], **({"every": 2, "layers": nn.Linear} | options))


def trainer(folder: Path, *own: Any, **options: Any) -> Any:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,  # 2 optimiser steps in an epoch
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    data = [{"input_ids": words, "labels": label} for words, label in zip(WORDS, LABELS, strict=True)]
    return transformers.Trainer(
        model=model(),
        args=transformers.TrainingArguments(**(defaults | options)),
        train_dataset=data,
        eval_dataset=data,
        callbacks=list(own),
    )


def losses(run: Any) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in run.state.log_history if "loss" in row}


# ---- steps


def test_optimiser_steps_are_measured_with_their_losses(tmp_path: Path) -> None:
    own, names = callback(), ["loss", "learning_rate", "eval_loss"]
    both = callback(every=None, steps=[0, 3, 6], metrics=names, tag="second")
    run = trainer(tmp_path, own, both, eval_strategy="steps", eval_steps=3)
    run.train()
    assert own.tracker.steps == [0, 2, 4, 6] and both.tracker.steps == [0, 3, 6]
    assert [row.metrics for row in own.tracker.history] == [{}, *({"loss": losses(run)[step]} for step in (2, 4, 6))]
    assert [sorted(row.metrics) for row in both.tracker.history] == [[], sorted(names), sorted(names)]


def test_measures_the_model_after_the_step(tmp_path: Path) -> None:
    own = callback(every=6, centering="per_output")
    run = trainer(tmp_path, own)
    run.train()
    x = dict(PROBE)
    expected = [
        ah.layerwise_alignment(one.eval(), x, LABELS[:6], layers=nn.Linear, centering="per_output")
        for one in (model(), run.model)
    ]
    assert own.tracker.layers == expected[0].layers
    assert torch.equal(own.tracker.cka, torch.stack([one.cka for one in expected]))


def test_a_loss_that_is_not_logged_is_not_there(tmp_path: Path) -> None:
    own = callback()
    trainer(tmp_path, own, logging_steps=4).train()
    assert [list(row.metrics) for row in own.tracker.history] == [[], [], ["loss"], []]


def test_a_part_of_the_model(tmp_path: Path) -> None:
    features = torch.randn(6, 8)
    own = AlignmentCallback(features, LABELS[:6], every=3, module="classifier")
    trainer(tmp_path, own).train()
    assert own.tracker.layers == ["(root)"]
    wrong = AlignmentCallback(features, LABELS[:6], every=3, module="clasifier")
    with pytest.raises(ValueError, match=r"^module: expected .* got 'clasifier'; nearest: \['classifier'"):
        trainer(tmp_path, wrong).train()


# ---- logging


def test_all_that_the_trainer_reports_to_gets_the_alignments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    run = trainer(tmp_path, report_to=["tensorboard"])
    own = AlignmentCallback(torch.randn(6, 8), LABELS[:6], every=2, module="classifier", log=run.log)
    run.add_callback(own)
    run.train()
    expected = dict(zip([0, 2, 4, 6], own.tracker.cka[:, 0].tolist(), strict=True))
    logged = {row["step"]: row["alignment/(root)"] for row in run.state.log_history if "alignment/(root)" in row}
    assert logged == expected
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert {one.step: one.value for one in events.Scalars("train/alignment/(root)")} == pytest.approx(expected)


def test_the_trainer_logs_what_it_would_without(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_steps=2)
    run.add_callback(callback(log=run.log))
    run.train()
    without = trainer(tmp_path, logging_steps=2)
    without.train()
    assert losses(run) == losses(without)
    assert list(losses(run)) == [2, 4, 6]


# ---- resuming


@pytest.mark.parametrize("stopped", [4, 3])  # at the end of an epoch, and within
def test_a_resumed_run_has_the_history_of_a_whole_one(tmp_path: Path, stopped: int) -> None:
    def run(folder: Path, **options: Any) -> tuple[Any, Any]:
        own = callback(centering=("global", "per_output"))
        fitted = trainer(folder, save_strategy="steps", save_steps=stopped)
        fitted.add_callback(own)
        fitted.train(**options)
        return own.tracker, fitted

    whole, first = run(tmp_path / "whole")
    saved = tmp_path / "whole" / f"checkpoint-{stopped}"
    saved.rename(tmp_path / "copied")  # a callback is not told where a checkpoint is
    tracker, second = run(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "copied"))
    assert whole.steps == [0, 2, 4, 6]
    assert same_history(tracker, whole)
    assert same(second.model.state_dict(), first.model.state_dict())
    assert losses(second) == losses(first)


def test_states_of_other_callbacks_are_restored_beside_it(tmp_path: Path) -> None:
    def patience() -> Any:
        return transformers.EarlyStoppingCallback(5, 0.0)

    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": True,
    }
    trainer(tmp_path, callback(), patience(), **options).train()
    own = callback()
    trainer(tmp_path, own, patience(), **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert own.tracker.steps == [0, 2, 4, 6]


def test_a_checkpoint_without_a_history(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=3).train()
    own = callback(every=5)
    resumed = trainer(tmp_path, own, save_strategy="steps", save_steps=3, max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert own.tracker.steps == [3, 5]


def test_another_run_begins_a_new_history(tmp_path: Path) -> None:
    own = callback()
    for _ in range(2):
        trainer(tmp_path, own).train()
        assert own.tracker.steps == [0, 2, 4, 6]


def test_two_callbacks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tag: expected another one for each callback of a Trainer, got 'alignment'"):
        trainer(tmp_path, callback(), callback(every=3)).train()


def test_the_state_stays_json(tmp_path: Path) -> None:
    own = callback()
    run = trainer(tmp_path, own, save_strategy="steps", save_steps=6)
    run.train()
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert "AlignmentCallback(module='', tag='alignment')" in state["stateful_callbacks"]


# ---- training


def test_training_is_the_same_without_the_callback(tmp_path: Path) -> None:
    run = trainer(tmp_path, callback(every=1))
    run.train()
    without = trainer(tmp_path)
    without.train()
    assert losses(run) == losses(without)
    assert same(run.model.state_dict(), without.model.state_dict())


def test_mixed_precision(tmp_path: Path) -> None:
    """accelerate replaces the forward of the model by one with autocast."""
    own = callback(every=6)
    run = trainer(tmp_path, own, bf16=True)
    run.train()
    expected = ah.layerwise_alignment(run.model.eval(), dict(PROBE), LABELS[:6], layers=nn.Linear)
    assert torch.equal(own.tracker.history[1].report.cka, expected.cka)


# ---- bad arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "every, steps: expected one of them, got neither"),
        ({"steps": [-1]}, ValueError, "steps: expected optimiser steps from 0 on, got -1"),
        ({"every": 1, "log": "tensorboard"}, TypeError, "log: expected a function of a dict, such as trainer.log"),
        ({"every": 1, "metrics": "loss"}, TypeError, "metrics: expected a sequence of names, got 'loss'"),
        ({"every": 1, "layer": "fc"}, TypeError, "layer: expected no such option; nearest: layers"),
        ({"every": 1, "x": "a sentence"}, TypeError, "x: expected a tensor"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        AlignmentCallback(arguments.pop("x", PROBE), LABELS[:6], **arguments)
    assert str(caught.value).startswith(message)
