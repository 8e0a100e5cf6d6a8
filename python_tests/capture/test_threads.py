"""Threads that measure side by side, and one that measures a model while another one trains it.

The environment variable AHKERNELS_THREADS_CALLS sets how often each thread measures.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch

import ahkernels as ah

CALLS = int(os.environ.get("AHKERNELS_THREADS_CALLS", "25"))
PATIENCE = 60.0 + CALLS  # seconds after which threads count as waiting for one another

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(autouse=True)
def _many_switches() -> Iterator[None]:
    """Python changes from thread to thread far more often than it would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def run_threads(works: Sequence[Callable[[], None]]) -> None:
    """Runs functions in a thread each and raises the first error of theirs; fails if they do not come to an end."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if waiting := [thread for thread in threads if thread.is_alive()]:
        frames = sys._current_frames()
        stacks = ["".join(traceback.format_stack(frames[one.ident])) for one in waiting if one.ident in frames]
        pytest.fail("threads wait for ever:\n" + "\n".join(stacks), pytrace=False)
    if errors:
        raise errors[0]


# ---- side by side


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(40, 5)


def convolutional() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers), torch.randn(10, 1, 6, 6)


def weight_norm() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 5)


def alignments(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    y = torch.arange(len(x)) % 3
    return lambda: ah.layerwise_alignment(model, x, y).cka


def kernels(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.stack([kernel.to_dense() for kernel in ah.tangent_kernels(model, x).values()])


def tracked(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    tracker = ah.AlignmentTracker(model, x, torch.arange(len(x)) % 3)
    return lambda: tracker.update(len(tracker.history)).report.cka


def process() -> dict[str, object]:
    """What all threads share, beside models."""
    return {
        "random numbers": torch.get_rng_state().tolist(),
        "warnings.filters": list(warnings.filters),
        # By these, torch.compile decides whether it compiles.
        "flags of dispatch modes": [value for name, value in vars(_python_dispatch).items() if name[:7] == "_is_in_"],
    }


def measure_side_by_side(measures: Sequence[Callable[[], Tensor]]) -> None:
    """Each thread finds, at each call, what its function finds alone; nothing of the process changes."""
    expected = [measure() for measure in measures]
    before = process()
    together = threading.Barrier(len(measures), timeout=PATIENCE)

    def work(measure: Callable[[], Tensor], alone: Tensor) -> None:
        together.wait()
        for _ in range(CALLS):
            assert torch.equal(measure(), alone)

    run_threads([lambda one=one, alone=alone: work(one, alone) for one, alone in zip(measures, expected, strict=True)])
    changed = [name for name, value in process().items() if value != before[name]]
    assert not changed, f"threads left changed: {', '.join(changed)}"


def test_four_threads_with_models_of_their_own():
    model, x = convolutional()
    measures = [alignments(*mlp()), alignments(model.eval(), x), kernels(*weight_norm()), tracked(*convolutional())]
    measure_side_by_side(measures)


@pytest.mark.parametrize("network", [mlp, convolutional, weight_norm])
def test_four_threads_with_one_model(network):
    model, x = network()
    measure_side_by_side([tracked(model, x), tracked(model, x), tracked(model, x[:8]), tracked(model, x[1:])])
    model.eval()
    measure_side_by_side([alignments(model, x), alignments(model, x), kernels(model, x), kernels(model, x)])


# ---- beside training


class Trained:
    """A network of tanh layers with one output, in training by plain steps.

    Attributes:
        states: All parameters in one vector, for each state that was ever in memory: a step changes one parameter after
            the other.
    """

    def __init__(self, dropout: float) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)]
        self.model = nn.Sequential(*layers).double()
        self.x, self.y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
        self.states: list[Tensor] = []
        self._remember()

    def _remember(self) -> None:
        self.states.append(nn.utils.parameters_to_vector(self.model.parameters()).detach())

    def step(self) -> None:
        self.model.zero_grad()
        batch = torch.arange(8) + len(self.states) % 8
        nn.functional.mse_loss(self.model(self.x[batch]), self.y[batch]).backward()
        for parameter in self.model.parameters():
            with torch.no_grad():
                parameter -= 0.3 * parameter.grad
            self._remember()

    def alignments(self, begin: int, end: int) -> Tensor:
        """The alignment of the three layers in some of the states, [states, 3], by the formula."""
        vectors = torch.stack(self.states[begin:end])
        sizes = [one.numel() for one in self.model.parameters()]
        shapes = [one.shape for one in self.model.parameters()]
        w1, b1, w2, b2, w3, _ = (
            part.unflatten(1, shape) for part, shape in zip(vectors.split(sizes, 1), shapes, strict=True)
        )
        h1 = torch.tanh(self.x @ w1.mT + b1.unsqueeze(1))
        h2 = torch.tanh(h1 @ w2.mT + b2.unsqueeze(1))
        g2 = (1 - h2**2) * w3
        g1 = (1 - h1**2) * (g2 @ w2)
        forward = [self.x.expand(len(vectors), -1, -1), h1, h2]
        backward = [g1, g2, torch.ones_like(h2[..., :1])]
        y, found = self.y - self.y.mean(), []
        for a, g in zip(forward, backward, strict=True):
            kernel = (a @ a.mT + 1) * (g @ g.mT)
            centered = kernel - kernel.mean(1, keepdim=True)
            centered = centered - centered.mean(2, keepdim=True)
            found.append((y.mT @ kernel @ y).flatten() / centered.flatten(1).norm(dim=1) / y.square().sum())
        return torch.stack(found, 1)


def measure_beside_training(trained: Trained, pause: int) -> tuple[list[tuple[int, int, Tensor]], list[Exception]]:
    """Measures CALLS times while another thread trains.

    Args:
        trained: What is trained.
        pause: The time between bursts of steps, as a multiple of what one measurement takes.

    Returns:
        The alignments, each with the first and the last number of states there were meanwhile, and the errors.
    """
    tracker = ah.AlignmentTracker(trained.model, trained.x, trained.y)
    found: list[tuple[int, int, Tensor]] = []
    errors: list[Exception] = []
    measured = threading.Event()
    start = time.monotonic()
    ah.layerwise_alignment(trained.model.eval(), trained.x, trained.y)
    trained.model.train()
    seconds = pause * (time.monotonic() - start)

    def train() -> None:
        while not measured.is_set():
            for _ in range(3):
                trained.step()
            if pause:
                measured.wait(seconds)

    def measure() -> None:
        try:
            for step in range(CALLS):
                begin = len(trained.states)
                try:
                    values = tracker.update(step).report.cka
                except (RuntimeError, ValueError) as error:
                    errors.append(error)
                else:
                    found.append((begin, len(trained.states), values))
        finally:
            measured.set()

    run_threads([train, measure])
    return found, errors


@pytest.mark.parametrize("pause", [0, 4], ids=["without pauses", "with pauses"])
def test_values_beside_training_are_those_of_a_state_or_refused(pause):
    """A value of parameters that were never there together would be wrong without a word."""
    trained = Trained(dropout=0.0)
    alone = ah.layerwise_alignment(trained.model, trained.x, trained.y).cka
    torch.testing.assert_close(trained.alignments(0, 1)[0], alone, rtol=1e-9, atol=0)
    found, errors = measure_beside_training(trained, pause)
    wrong = []
    for begin, end, values in found:
        candidates = trained.alignments(max(0, begin - 1), end + 1)
        distance = float(((candidates - values) / candidates).abs().amax(1).min())
        if distance > 1e-8:
            wrong.append(distance)
    unclear = [error for error in errors if not str(error).startswith("model: expected ") or "\n" in str(error)]
    assert not wrong and not unclear, (
        f"of {CALLS} measurements {len(wrong)} are those of no state, by {wrong[:5]}, and {len(unclear)} have an error "
        f"that does not say it, such as {unclear[:1]!r}"
    )
    assert found or not pause, f"no measurement came through: {errors[0]}"


@pytest.mark.parametrize("pause", [0, 4], ids=["without pauses", "with pauses"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training_beside_measurements_is_what_it_is_without(dropout, pause):
    """Also where training draws random numbers from torch's own generator."""
    trained, alone = Trained(dropout), Trained(dropout)
    torch.manual_seed(1)
    measure_beside_training(trained, pause)
    torch.manual_seed(1)
    while len(alone.states) < len(trained.states):
        alone.step()
    different = [i for i, (a, b) in enumerate(zip(trained.states, alone.states, strict=True)) if not torch.equal(a, b)]
    assert not different, f"from state {different[0]} of {len(alone.states)} on, training is another one"
