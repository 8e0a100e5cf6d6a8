"""A measurement that is interrupted leaves no trace, wherever Python may deliver the signal.

CPython looks for signals when a function is entered or a generator goes on, after calls, and where a loop goes back.
Each point is one run: a KeyboardInterrupt comes there, everything is held against what it was before, another thread
measures, and a step of training gives what it gives without a measurement, bit for bit. The exception is kept until
then, as an interactive session keeps it, since the end of its traceback may not be what restores the state.

The environment variable AHKERNELS_INTERRUPTS sets the number of points for each situation and way; 20000 are all.
"""

from __future__ import annotations

import dis
import functools
import os
import random
import signal
import sys
import threading
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from tqdm import tqdm

import ahkernels as ah

POINTS = int(os.environ.get("AHKERNELS_INTERRUPTS", "24"))
PACKAGE = str(Path(ah.__file__).parent)
OUTSIDE = "the test itself"  # where a signal may come after the measurement
HANGS = 30.0  # seconds after which a measurement counts as one that hangs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]


# ---- situations


class Situation:
    """A network in training, after a first step, and a measurement of it.

    Attributes:
        model: The network.
        tracker: Its tracker, where one measures.
    """

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002, the state that a model may use
        model, self.x, self.y = NETWORKS[name]()
        self.model = model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.step()
        self.by_kernels = name == "fallback"
        self.tracker = ah.AlignmentTracker(model, self.x, self.y) if name.startswith("tracker") else None
        if self.tracker is not None:
            self.tracker.update(0)

    @property
    def history(self) -> list[Any]:
        """What the tracker remembers."""
        return [] if self.tracker is None else list(self.tracker.history)

    def measure(self) -> Any:
        if self.tracker is not None:
            return self.tracker.update(self.tracker.steps[-1] + 1)
        if self.by_kernels:
            return ah.tangent_kernels(self.model, self.x)
        return ah.layerwise_alignment(self.model, self.x, self.y)

    def values(self) -> Tensor:
        """What a measurement finds: the alignments, or all entries of the kernels."""
        found = self.measure()
        if self.by_kernels:
            return torch.stack([kernel.to_dense() for kernel in found.values()])
        return (found if self.tracker is None else found.report).cka

    def step(self) -> Tensor:
        """One step of training."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def trained(self) -> dict[str, Any]:
        """What one more step of training leaves."""
        found: dict[str, Any] = {"loss": self.step()}
        found |= {f"buffer {name}": buffer.clone() for name, buffer in self.model.named_buffers()}
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            found[name], found[f"gradient of {name}"] = parameter.detach().clone(), parameter.grad.clone()
            found[f"momentum of {name}"] = self.optimizer.state[parameter]["momentum_buffer"].clone()
        return found | random_numbers()


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.randn(12, 5), torch.arange(12) % 3


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers), torch.randn(8, 1, 6, 6), torch.arange(8) % 3


def in_eval_mode() -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = convolutional()
    return model.eval(), x, y


def weight_norm() -> tuple[nn.Module, Tensor, Tensor]:
    layers = torch.nn.utils.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers), torch.randn(6, 5), torch.arange(6) % 3


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "mlp": mlp,
    "tracker, mlp": mlp,
    "tracker, convolutions in training": convolutional,
    "convolutions": in_eval_mode,
    "fallback": weight_norm,
}


# ---- what may not change


class Itself:
    """Is equal to another one of the same object only."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def random_numbers() -> dict[str, Any]:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch's random numbers": torch.get_rng_state(),
        "numpy's random numbers": (torch.from_numpy(np.array(keys, dtype=np.int64)), rest),
        "Python's random numbers": random.getstate(),
    }


def state_of_model(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            at = f"attribute {name}.{key}"
            state[at] = Itself(value)
            if isinstance(value, dict):
                state[f"{at}, its contents"] = [(one, Itself(entry)) for one, entry in value.items()]
            elif isinstance(value, (set, list)):
                state[f"{at}, its contents"] = [Itself(entry) for entry in value]
            elif isinstance(value, Tensor):
                state[f"{at}, its values"] = value.detach().clone()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        hooks = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)
        state[f"values of {name}"] = tensor.detach().clone()
        state[f"flags of {name}"] = (tensor.requires_grad, tensor.is_leaf, tensor._version, Itself(tensor.grad_fn))
        state[f"hooks of {name}"] = [None if one is None else list(one) for one in hooks]
        state[f"gradient of {name}"] = Itself(tensor.grad)
        if tensor.grad is not None:
            state[f"values of the gradient of {name}"] = tensor.grad.clone()
    return state


def state_of_process() -> dict[str, Any]:
    tables = vars(torch.nn.modules.module)
    torch._C._vmapmode_increment_nesting()
    return random_numbers() | {
        "gradients enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "forward gradients enabled": torch._C._is_fwd_grad_enabled(),
        "multithreaded autograd": torch._C._is_multithreading_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "hooks of saved tensors": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "flags of dispatch modes": flags_of_dispatch_modes(),
        "function modes": len(_get_current_function_mode_stack()),
        "functorch levels": len(torch._C._functorch.get_interpreter_stack() or ()),
        "levels of batched gradients": torch._C._vmapmode_decrement_nesting(),
        "dispatch keys": (
            repr(torch._C._dispatch_tls_local_include_set()),
            repr(torch._C._dispatch_tls_local_exclude_set()),
        ),
        "hooks of all modules": [list(table or ()) for name, table in tables.items() if name.startswith("_global_")],
        "cache of parametrizations": (parametrize._cache_enabled, len(parametrize._cache)),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "warnings.filters": list(warnings.filters),
        "warnings.showwarning": (Itself(warnings.showwarning), Itself(warnings._showwarnmsg_impl)),
        "locks": list(held_locks()),
    }


def flags_of_dispatch_modes() -> dict[str, bool]:
    """Variables of torch that are one for all threads, by which torch.compile decides whether it compiles."""
    return {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}


@functools.cache
def locks() -> dict[str, Any]:
    """The locks in modules and classes of the package, and those of progress bars."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    found = dict(zip(("of tqdm between processes", "of tqdm between threads"), tqdm.get_lock().locks, strict=True))
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "ahkernels":
            continue
        for name, value in vars(module).items():
            members = vars(value) if isinstance(value, type) else {}
            for key, one in {name: value, **{f"{name}.{key}": one for key, one in members.items()}}.items():
                if isinstance(one, kinds):
                    found[f"{module_name}.{key}"] = one
    return found


def held_locks() -> dict[str, Any]:
    """The locks that somebody holds."""
    free = ("<unlocked", "<RLock(None, 0)>")
    return {name: lock for name, lock in locks().items() if not repr(lock).startswith(free)}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


MISSING = object()


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = {**before, **after}
    return [name for name in names if not equal(before.get(name, MISSING), after.get(name, MISSING))]


def repair(state: dict[str, Any]) -> None:
    """Undoes for the points that follow what an interrupt left changed in the process."""
    torch.set_grad_enabled(state["gradients enabled"])
    while torch._C._functorch.get_interpreter_stack():
        torch._C._functorch.pop_dynamic_layer_stack()
    while torch._C._vmapmode_increment_nesting() > 1:
        torch._C._vmapmode_decrement_nesting()
        torch._C._vmapmode_decrement_nesting()
    torch._C._vmapmode_decrement_nesting()
    while _get_current_dispatch_mode_stack():
        torch._C._pop_torch_dispatch_stack(None)
    vars(_python_dispatch).update(state["flags of dispatch modes"])
    warnings.filters[:] = state["warnings.filters"]
    warnings._filters_mutated()
    for lock in held_locks().values():
        lock.release()


# ---- ways to interrupt


class Point(NamedTuple):
    """A point of a measurement.

    Attributes:
        index: Where it is, for the way that found it.
        event: What Python does there.
        stack: The three innermost functions, and the instruction in each.
        near: Whether one of these functions is of the package.
        holding: Whether one of them enters or leaves a context.
    """

    index: tuple[int, int]
    event: str = "signal"
    stack: tuple[tuple[str, str, int], ...] = ()
    near: bool = False
    holding: bool = False

    @classmethod
    def at(cls, index: tuple[int, int], event: str, innermost: types.FrameType) -> Point:
        """A point in a function that runs."""
        stack: list[tuple[str, str, int]] = []
        frame: types.FrameType | None = innermost
        while frame is not None and len(stack) < 3:
            stack.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lasti))
            frame = frame.f_back
        near = any(path.startswith(PACKAGE) for path, _, _ in stack)
        return cls(index, event, tuple(stack), near, any(name in ("__enter__", "__exit__") for _, name, _ in stack))


@functools.cache
def checks(code: types.CodeType) -> tuple[frozenset[int], frozenset[int]]:
    """Where an exception does what a signal does, by the offsets of instructions.

    Returns:
        The instructions that follow a call or a jump back, and the calls with such an instruction before them. Where
        the handler of exceptions is another one than at the call or jump, no signal can come: between the last call of
        a with block and the call of `__exit__`, say.
    """
    entries = sorted((one.start, one.end, one.target) for one in dis.Bytecode(code).exception_entries)
    instructions = list(dis.get_instructions(code))

    def handler(offset: int) -> int | None:
        around = [one for one in entries if one[0] <= offset < one[1]]
        return around[-1][2] if around else None

    following, calls = set(), set()
    checked, after_call = 0, False  # where Python last looked for signals, and whether that was one instruction ago
    for one in instructions:
        if one.opname.startswith("CALL") and handler(checked) == handler(one.offset):
            calls.add(one.offset)
        if after_call and handler(checked) == handler(one.offset):
            following.add(one.offset)
        after_call = one.opname.startswith("CALL")
        back = "JUMP_BACKWARD" in one.opname and "NO_INTERRUPT" not in one.opname
        if back and handler(one.argval) == handler(one.offset):
            following.add(one.argval)
        if after_call or back or one.opname == "RESUME":
            checked = one.offset
    return frozenset(following), frozenset(calls)


class Traced:
    """Where functions are entered, and within them after calls and jumps back, by `sys.settrace`.

    A point is the number of the function that was entered, and the number of the instruction in it, or 0.
    """

    def points(self, measure: Callable[[], object]) -> list[Point]:
        found: list[Point] = []
        entries = 0

        def entered(frame: types.FrameType, event: str, argument: object) -> Any:
            nonlocal entries
            entry, instructions = entries, 0
            entries += 1
            if frame.f_code.co_filename == __file__:
                return None
            following, _ = checks(frame.f_code)
            found.append(Point.at((entry, 0), event, frame))
            frame.f_trace_lines, frame.f_trace_opcodes = False, True

            def within(frame: types.FrameType, event: str, argument: object) -> Any:
                nonlocal instructions
                if event == "opcode":
                    instructions += 1
                    if frame.f_lasti in following:
                        found.append(Point.at((entry, instructions), event, frame))
                return within

            return within

        with _kept(sys.gettrace, sys.settrace):
            sys.settrace(entered)
            measure()
        return found

    def interrupt(self, measure: Callable[[], object], point: Point) -> None:
        at_entry, at_instruction = point.index
        entries, instructions = -1, 0

        def within(frame: types.FrameType, event: str, argument: object) -> Any:
            nonlocal instructions
            if event == "opcode":
                instructions += 1
                if instructions == at_instruction:
                    raise KeyboardInterrupt
            return within

        def entered(frame: types.FrameType, event: str, argument: object) -> Any:
            nonlocal entries
            entries += 1
            if entries != at_entry:
                return None
            if not at_instruction:
                raise KeyboardInterrupt
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            return within

        with _kept(sys.gettrace, sys.settrace):
            sys.settrace(entered)
            measure()


class Profiled:
    """Before and after calls of C functions, by `sys.setprofile`. A point is the number of the event."""

    def points(self, measure: Callable[[], object]) -> list[Point]:
        found: list[Point] = []
        events = 0

        def profile(frame: types.FrameType, event: str, argument: object) -> None:
            nonlocal events
            if event not in ("c_call", "c_return"):
                return
            events += 1
            if frame.f_code.co_filename == __file__:
                return
            if event == "c_return" or frame.f_lasti in checks(frame.f_code)[1]:
                found.append(Point.at((events, 0), event, frame))

        with _kept(sys.getprofile, sys.setprofile):
            sys.setprofile(profile)
            measure()
        return found

    def interrupt(self, measure: Callable[[], object], point: Point) -> None:
        events = 0

        def profile(frame: types.FrameType, event: str, argument: object) -> None:
            nonlocal events
            if event in ("c_call", "c_return"):
                events += 1
                if events == point.index[0]:
                    raise KeyboardInterrupt

        with _kept(sys.getprofile, sys.setprofile):
            sys.setprofile(profile)
            measure()


class Signalled:
    """By a real signal after a random time. A point is a time in nanoseconds."""

    def points(self, measure: Callable[[], object]) -> list[Point]:
        start = time.perf_counter_ns()
        measure()
        longest = time.perf_counter_ns() - start
        drawn = random.Random(0)
        times = sorted(drawn.randrange(1000, longest) for _ in range(POINTS))
        return [Point((one, 0)) for one in times]

    def interrupt(self, measure: Callable[[], object], point: Point) -> None:
        def raising(number: int, frame: types.FrameType | None) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, raising)
        try:
            signal.setitimer(signal.ITIMER_REAL, point.index[0] * 1e-9)
            measure()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class _kept:
    """Restores a trace or profile function, without a frame of its own in between."""

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
        self.before, self.put = get(), put

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.put(self.before)


WAYS: dict[str, Any] = {"instructions": Traced(), "C functions": Profiled(), "signals": Signalled()}


# ---- the test


def evenly(points: Sequence[Point], number: int) -> Iterator[Point]:
    count = min(number, len(points))
    return (points[(2 * i + 1) * len(points) // (2 * count)] for i in range(count))


def chosen(points: Sequence[Point]) -> list[Point]:
    """A third of the points is in contexts that are entered or left, and a third in what the package does itself."""
    if len(points) <= POINTS:
        return list(points)
    first = list({point[1:]: point for point in reversed(points)}.values())[::-1]  # each once, at its first time
    holding, near = [one for one in first if one.holding], [one for one in first if one.near]
    third = POINTS // 3
    return sorted({*evenly(holding, third), *evenly(near, third), *evenly(points, POINTS - 2 * third)})


def place(error: BaseException) -> str:
    """The innermost line of the package on the way to an exception, and the innermost of all."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        found.append((path, f"{'/'.join(path.parts[-2:])}:{traceback.tb_lineno}"))
        traceback = traceback.tb_next
    found = [(path, at) for path, at in found if str(path) != __file__]
    if not found:
        return OUTSIDE
    package = [at for path, at in found if str(path).startswith(PACKAGE)]
    return " > ".join(dict.fromkeys([*package[-1:], found[-1][1]]))


def interrupt(way: Any, measure: Callable[[], object], point: Point, caught: list[BaseException]) -> None:
    """Runs a measurement that is interrupted; the exception is kept alive in a list."""
    try:
        way.interrupt(measure, point)
    except KeyboardInterrupt as error:
        caught.append(error)


def in_a_thread(measure: Callable[[], Tensor]) -> Tensor | str:
    found: list[Tensor | str] = []

    def work() -> None:
        try:
            found.append(measure())
        except BaseException as error:
            found.append(f"a later measurement raises {error!r}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANGS)
    return found[0] if found else "a later measurement hangs"


def left_behind(name: str, way: Any, point: Point, values: Tensor, after: dict[str, Any]) -> tuple[str, list[str]]:
    """Where the interrupt came, and what it left changed.

    Args:
        name: The situation.
        way: The way to interrupt it.
        point: Where to.
        values: What a measurement that nothing interrupts finds.
        after: What a step of training without a measurement leaves.
    """
    situation, caught = Situation(name), []
    of_model, of_process, history = state_of_model(situation.model), state_of_process(), situation.history
    interrupt(way, situation.measure, point, caught)
    where = place(caught[0]) if caught else "nothing was raised"
    found = changes(of_model, state_of_model(situation.model)) + changes(of_process, state_of_process())
    inside = caught and where != OUTSIDE
    if inside and list(map(id, situation.history)) != list(map(id, history)):
        found.append("history of the tracker")
    for lock in held_locks().values():  # or else the measurement that follows would wait for ever
        lock.release()
    later = in_a_thread(situation.values)
    if isinstance(later, str):
        return where, [*found, later]
    if not torch.equal(later, values):
        found.append("a later measurement finds other values")
    try:
        once_more = torch.func.vmap(torch.sin)(torch.ones(2))
        assert torch.equal(once_more, torch.ones(2).sin())
        found += [f"after a step of training: {one}" for one in changes(after, situation.trained())]
    except Exception as error:
        found.append(f"a step of training raises {error!r}")
    caught.clear()  # what hangs on the traceback may not undo anything now
    found += [f"when the exception is gone: {one}" for one in changes(_last(after), random_numbers())]
    repair(of_process)
    return where, found


def _last(after: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if name.endswith("random numbers")}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_an_interrupted_measurement(name, way, monkeypatch):
    if sys.version_info < (3, 11) and way != "signals":
        pytest.skip("where a signal may come is known from Python 3.11 on")
    if way == "signals" and (
        not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread()
    ):
        pytest.skip("signals come to the main thread only, and not on every system")
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # Python drops what a destructor raises
    after = Situation(name).trained()
    for _ in range(3):  # later runs take the same way through caches
        values = Situation(name).values()
    points = chosen(WAYS[way].points(Situation(name).measure))
    failures: Counter[str] = Counter()
    for point in points:
        where, found = left_behind(name, WAYS[way], point, values, after)
        failures.update(f"{where}: {', '.join(found)}" for _ in range(bool(found)))
        if any("hangs" in one for one in found):
            break
    report = "\n".join(f"{count} times {what}" for what, count in failures.most_common())
    if failures:
        pytest.fail(f"{failures.total()} of {len(points)} interrupts left something changed:\n{report}", pytrace=False)
