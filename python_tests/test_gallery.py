"""The examples of the gallery run as scripts, and the sentences below their pictures are true."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"

Namespace = dict[str, Any]


def own_network(e: Namespace) -> None:
    assert (e["after"].cka > e["before"].cka).all()
    assert e["after"].cka.min() > 5 * e["shuffled"].cka.max()


def training_run(e: Namespace) -> None:
    first, *_, last = e["tracker"].cka
    assert first.max() < 3 * first.min()
    assert (last > first).all()
    assert (last[:-1] > last[-1]).all()
    assert e["tracker"].history[-1].metrics["training_loss"] < 0.5


def two_centerings(e: Namespace) -> None:
    assert e["share"].argmax() > e["depth"] // 2
    assert (e["share"][-5:] > 0.5).all()
    assert (e["reports"]["per_output"].cka > e["reports"]["global"].cka).all()


def convolutional_network(e: Namespace) -> None:
    report, kinds = e["report"], [one.kind for one in e["explanation"]]
    assert report.cka.min() > 3 * e["shuffled"].cka.max()
    assert report.cka.argmin() == len(report) - 1
    flops = {kind: sum(one.flops for one in e["explanation"] if one.kind == kind) for kind in kinds}
    assert flops["Conv2d"] > 0.95 * sum(flops.values())


def transformer(e: Namespace) -> None:
    before, after = e["before"], e["after"]
    assert all(after[name] > before[name] for name in after if name.startswith(("attention", "feed-forward")))
    growth = {name: after[name] - before[name] for name in after}
    assert growth["head"] > 2 * max(value for name, value in growth.items() if name != "head")


def spectrum(e: Namespace) -> None:
    before, after = e["before"], e["after"]
    up = (after.label_correlation / before.label_correlation).log()
    left = (before.stable_rank / after.stable_rank).log() / 2
    assert (up[2:4] > 2 * left[2:4].abs()).all()
    assert e["difference"] < 1e-10


def layer_similarity(e: Namespace) -> None:
    before, after = (matrix.diagonal(1) for matrix in e["panels"].values())
    assert (after[1:6] > before[1:6]).all()
    nearest = torch.cat([after[:1], torch.minimum(after[1:], after[:-1]), after[-1:]])
    assert (e["left_over"] < nearest).all()


def error_bars(e: Namespace) -> None:
    assert e["inside"] >= 34  # of 40: a chance of 1 in 70 for less, and the seeds are fixed
    widths = [sum(one.standard_error for one in row) for row in e["estimates"].values()]
    assert widths == sorted(widths, reverse=True)
    assert all(one.relative_error < 0.01 for one in e["estimates"][96])
    assert all(one.relative_error <= t for one, t in zip(e["reached"], e["tolerances"], strict=True))


def kernel_regression(e: Namespace) -> None:
    before, after = list(e["before"].values()), list(e["after"].values())
    assert min(before[:3]) > max(before[-2:])
    assert min(after[-2:]) > max(after[:2])
    assert after[-1] > e["network"] - 0.05
    assert len(e["x"]) > 10 * len(e["x_few"])


def theory_and_measurement(e: Namespace) -> None:
    crossing = e["loss"].layers[e["backward"] > e["forward"]][0]
    assert abs(crossing - e["balance"]) < 2
    forward, backward = (abs(e[name] / getattr(e["loss"], name) - 1).mean() for name in ("forward", "backward"))
    assert forward < backward < 0.2
    apart = torch.stack([(e["limit"].cka - values.mean(0)) for values in e["measured"].values()])
    assert (apart.mean(1).diff() < 0).all()
    assert (apart[-1] > 0).all()
    assert apart[-1, -3:].min() > apart[-1, :10].max()


def checkpoint_series(e: Namespace) -> None:
    growth = e["history"].cka[-1] - e["history"].cka[0]
    assert (growth > 0).all()
    assert 0 < growth.argmax() < len(growth) - 1
    assert not e["run"].exists()  # its temporary folder


SENTENCES: dict[str, Callable[[Namespace], None]] = {
    check.__name__: check
    for check in (
        own_network,
        training_run,
        two_centerings,
        convolutional_network,
        transformer,
        spectrum,
        layer_similarity,
        error_bars,
        kernel_regression,
        theory_and_measurement,
        checkpoint_series,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SENTENCES)
def test_an_example_runs_and_its_sentence_is_true(name, tmp_path, monkeypatch, one_thread):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    pyplot.switch_backend("agg")
    monkeypatch.delenv("DISPLAY", raising=False)  # with one, show() says that it does nothing
    monkeypatch.chdir(tmp_path)
    try:
        found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
        assert [len(figure.axes) > 0 for figure in figures] == [True]
        figures[0].canvas.draw()
    finally:
        pyplot.close("all")
        pyplot.rcdefaults()
    SENTENCES[name](found)
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_tested():
    assert sorted(SENTENCES) == sorted(path.stem for path in EXAMPLES.glob("*.py"))
