"""The plan of a capture: its checked arguments, and how each layer will be captured, before any of the work is done."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ahkernels.capture.batch import Batch, Inputs
from ahkernels.capture.forward import Forward
from ahkernels.capture.guard import (
    RandomNumbers,
    leaving_no_trace,
    other_random_numbers,
    refuse_modules,
    version_of,
)
from ahkernels.capture.memory import Memory
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.remembered import RememberedTrace
from ahkernels.capture.route import Route, Shape, choose_route, fallback_route
from ahkernels.capture.selection import Layer, select_layers
from ahkernels.capture.structure import Known, known
from ahkernels.capture.tied import uses_of_table
from ahkernels.capture.trace import Trace, few_samples, trace_model
from ahkernels.capture.traced import TracedLayer
from ahkernels.capture.twin import Twin
from ahkernels.capture.wrappers import unwrapped
from ahkernels.outputs import OutputSelection
from ahkernels.precision import resolve_precision
from ahkernels.stack import level_of_the_caller

_FORWARD_CHUNK = 1024  # samples in a forward pass without gradients
_MOST_NAMES = 8  # of parameters that a warning lists


@dataclass(frozen=True)
class PlannedLayer(TracedLayer):
    """A layer and its route for a given number of samples.

    Attributes:
        route: How its kernel will be computed.
    """

    route: Route

    @classmethod
    def of(
        cls, layer: TracedLayer, model: nn.Module, outputs: OutputSelection, memory: Memory, *, keep_factors: bool
    ) -> PlannedLayer:
        """Chooses the route of a layer of a model within the memory budget."""
        n, r, e = memory.most, outputs.rows, outputs.entries
        most_numbers, budget = memory.kept // memory.item, memory.budget // memory.item
        if layer.d == 0:  # a Jacobian
            tied = layer.rule is None and bool(uses_of_table(model, layer.parameters))
            route = fallback_route(n, r, e, layer.m, most_numbers, budget, tied=tied)
            if layer.rule is None or route.name == "root":  # which the fallback forms from slices of the Jacobian
                return cls(**vars(layer.without_rule()), route=route)
        shape = Shape(n, r, e, layer.positions, layer.d, layer.m, layer.bias)
        keep_factors = layer.one_hot or (keep_factors and layer.d > 0)
        return cls(**vars(layer), route=choose_route(shape, most_numbers, budget, keep_factors=keep_factors))

    @property
    def as_jacobian(self) -> bool:
        """Whether the Jacobian of the layer, or a root of K, is kept instead of its factors."""
        return self.route.name == "jacobian" or self.alone

    @property
    def alone(self) -> bool:
        """Whether the layer takes all that may be kept, so that it has passes of its own."""
        return self.route.name in ("root", "tied")

    @property
    def in_blocks(self) -> bool:
        """Whether the layer has a rule and is captured by one block of samples at a time."""
        return self.rule is not None and self.route.of_parts is not None

    @property
    def of_block(self) -> PlannedLayer:
        """The layer as a block of its samples is captured."""
        assert self.route.of_parts is not None
        return replace(self, route=self.route.of_parts)


@dataclass(frozen=True)
class CapturePlan:
    """A capture whose arguments have been checked.

    Attributes:
        model: The network.
        x: Its inputs.
        forward: How it is called.
        options: What the user chose.
        precision: "highest", "high" or "medium".
        outputs: The outputs that enter the kernels.
        evaluating: Whether the network is measured in eval mode, whatever mode it is in.
        grams: Whether forward and backward Grams are asked for.
        trace: What a call on a few samples found.
        layers: The layers to capture, in forward order, by name.
        groups: The name of each kernel and the names of its layers, in forward order.
        memory: The division of the memory budget.
        known: What earlier captures of a model of this structure found.
        versions: How often the memory of each parameter had been written to when the plan was made.
    """

    model: nn.Module
    x: Batch
    forward: Forward
    options: CaptureOptions
    precision: str
    outputs: OutputSelection
    evaluating: bool
    grams: bool
    trace: Trace
    layers: dict[str, PlannedLayer]
    groups: dict[str, list[str]]
    memory: Memory
    known: Known
    versions: Mapping[str, int]

    @property
    def kinds(self) -> list[str]:
        """The type of the modules of each group, "" where there are several."""
        of_groups = [{type(self.layers[name].module).__name__ for name in members} for members in self.groups.values()]
        return [kinds.pop() if len(kinds) == 1 else "" for kinds in of_groups]

    @property
    def certifies(self) -> bool:
        """Whether this capture is held against autograd."""
        return self.known.certifies(self.options.certify)

    @property
    def cotangents(self) -> Tensor:
        """The gradients by the outputs that the backward passes start from, [r, o]."""
        return self.outputs.cotangents(self.trace.output)

    def twin(self, dtype: torch.dtype | None = None) -> Twin:
        """A new twin of the model, with all real numbers in a dtype if one is given."""
        return Twin(self.model, evaluating=self.evaluating, dtype=dtype)

    def other_random_numbers(self) -> AbstractContextManager[None]:
        """Another state of random numbers for calls of the model, if it draws any."""
        return other_random_numbers(self.x.device, self.trace.draws)

    def without_rule(self, layer: PlannedLayer) -> PlannedLayer:
        """The same layer with its Jacobian from the fallback."""
        traced = TracedLayer.by_fallback(layer, self.model)
        return PlannedLayer.of(traced, self.model, self.outputs, self.memory, keep_factors=False)

    def members(self, groups: Sequence[str]) -> list[str]:
        """The layers of some of the groups, each once, in forward order."""
        return [name for name in self.layers if any(name in self.groups[group] for group in groups)]

    def first_pass(self, groups: Sequence[str], layers: Mapping[str, PlannedLayer]) -> list[str]:
        """The first groups whose layers fit the memory budget together, and at least one.

        The parts that a root is summed from take all that may be kept, so that its layer has passes of its own.

        Args:
            groups: The groups that are left, in forward order.
            layers: The plan of each layer, which is another one where a rule has failed since.
        """
        found: list[str] = []
        captured: set[str] = set()
        kept = 0
        for group in groups:
            added = [layers[name] for name in self.groups[group] if name not in captured]
            kept += self.memory.kept_of(added)
            alone = any(layer.alone for layer in added)
            if found and (alone or kept > self.memory.kept):
                break
            found.append(group)
            captured.update(layer.name for layer in added)
            if alone:
                break
        return found

    @property
    def costs(self) -> dict[str, int]:
        """What each kernel costs in flops, by its name."""
        return {name: sum(self.layers[one].route.cost for one in members) for name, members in self.groups.items()}

    @property
    def peak_bytes(self) -> int:
        """What the largest pass of a capture holds at most, beyond the model and its inputs."""
        return max(map(self.memory.held_by_pass, self._passes()))

    @property
    def kept_bytes(self) -> int:
        """What is kept at most of the layers of one pass."""
        return max(map(self.memory.kept_of, self._passes()))

    def _passes(self) -> Iterator[list[PlannedLayer]]:
        """The layers of each pass."""
        rest = list(self.groups)
        while rest:
            names = self.first_pass(rest, self.layers)
            rest = rest[len(names) :]
            yield [self.layers[name] for name in self.members(names)]

    def require_unchanged(self) -> None:
        """Raises RuntimeError if a parameter has been written to since the plan was made."""
        changed = [name for name, version in _versions(self.model).items() if version != self.versions.get(name)]
        if changed:
            raise RuntimeError(
                "model: expected parameters that stay as they are while they are measured, got changes of "
                f"{changed[0]!r}, from another thread, say; measure between two steps of training"
            )

    @leaving_no_trace
    def logits(self) -> Tensor:
        """Computes f(x) [n, o], a chunk of samples at a time."""
        chunks = []
        for begin in range(0, len(self.x), _FORWARD_CHUNK):
            with self.other_random_numbers(), torch.no_grad():
                chunks.append(self.forward(self.twin().model, self.x[begin : begin + _FORWARD_CHUNK]))
        return torch.cat(chunks)


def plan_capture(
    model: nn.Module,
    x: Inputs,
    options: CaptureOptions,
    *,
    keep_factors: bool = False,
    grams: bool = False,
    evaluating: bool = False,
    most: int = 0,
) -> CapturePlan:
    """Checks the arguments of a measurement, and runs a twin of the model on a few samples.

    Args:
        model: A network whose samples are independent given its parameters, with f(x) of shape [n, o], or a wrapper
            around one (see `unwrapped`).
        x: Its inputs (see `Batch`).
        options: What the user chose.
        keep_factors: Whether the factors are kept also where the Jacobian is smaller.
        grams: Whether forward and backward Grams are asked for.
        evaluating: Whether to measure the network in eval mode, whatever mode it is in.
        most: The most samples that any process measures, if there are several.

    Returns:
        The plan.

    Raises:
        ValueError: If an argument is out of range or does not fit the model; the message names it.
        TypeError: If an argument has another type; the message names it.
    """
    model, batch = unwrapped(model), Batch(x)
    forward = Forward.here(options.output, batch.device)
    return _plan(model, batch, forward, options, keep_factors, grams, evaluating, max(most, len(batch)))


@leaving_no_trace
def _plan(
    model: nn.Module,
    x: Batch,
    forward: Forward,
    options: CaptureOptions,
    keep_factors: bool,
    grams: bool,
    evaluating: bool,
    most: int,
) -> CapturePlan:
    """Makes the plan outside of the autocast region that the user may be in."""
    precision = resolve_precision(options.precision)
    selected = select_layers(model, options.layers)
    x.require_fit(model)
    refuse_modules(model, evaluating=evaluating)
    if parametrize._cache_enabled and any(hasattr(module, "parametrizations") for module in model.modules()):
        raise ValueError(
            "model: expected a call outside of torch.nn.utils.parametrize.cached(), got one under it, where a "
            "measurement would take the cached values for its own; measure after the with block"
        )
    _warn_of_hooks_on_gradients(model, selected.layers)
    versions = _versions(model)
    chosen = str(replace(options, output=None, process_group=None))
    of_structure = known(model, x, forward, selected.layers, [chosen, keep_factors, grams, evaluating])
    layers = [layer.without_rule() if layer.name in of_structure.without_rule else layer for layer in selected.layers]
    new_twin = functools.partial(Twin, model, evaluating=evaluating)
    trace, random = None, None
    if of_structure.trace is not None and options.certify > 0 and not of_structure.certifies(options.certify):
        random = RandomNumbers(x.device)
        trace = of_structure.trace.again(forward, new_twin, model, x, layers, random)
    if trace is None:
        try:
            trace = trace_model(forward, new_twin, model, x, layers, of_structure.failed)
        except (RuntimeError, TypeError, AssertionError, IndexError) as error:
            wrong = x.of_another_dtype(model)
            if wrong is not None:
                raise ValueError(wrong) from error
            _require_some_samples(forward, new_twin, x, error)
            raise
        if random is not None and trace.draws:
            random.restore()
        of_structure.trace = RememberedTrace.of(trace)
    outputs = OutputSelection(options.outputs, trace.output.shape[1])
    item = max(model.get_parameter(name).dtype.itemsize for layer in layers for name in layer.parameters)
    memory = Memory(options.memory_budget, len(x), outputs.rows, item, trace.bytes_per_sample, x.device, most)
    planned = {
        layer.name: PlannedLayer.of(layer, model, outputs, memory, keep_factors=keep_factors) for layer in trace.layers
    }
    groups = _in_forward_order(selected.groups, list(planned))
    return CapturePlan(
        *(model, x, forward, options, precision, outputs, evaluating, grams),
        *(trace, planned, groups, memory, of_structure, versions),
    )


def _warn_of_hooks_on_gradients(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Says whose hooks on gradients a measurement leaves out."""
    names = [name for layer in layers for name in layer.parameters if model.get_parameter(name)._backward_hooks]
    if names:
        shown = ", ".join(map(repr, names[:_MOST_NAMES])) + (", ..." if len(names) > _MOST_NAMES else "")
        warnings.warn(
            f"model: hooks on the gradients of parameters are not called (of {shown}): kernels are made of the "
            "gradients of the outputs, before any hook; for a mask that counts, multiply the weight by it in forward, "
            "as torch.nn.utils.prune does",
            stacklevel=level_of_the_caller(),
        )


def _require_some_samples(forward: Forward, new_twin: Callable[[], Twin], x: Batch, error: Exception) -> None:
    """Raises ValueError if the model takes all samples and not a few of them, where tracing it has met an error."""
    random = RandomNumbers(x.device)
    try:
        if _takes(forward, new_twin, x[few_samples(len(x))]) or not _takes(forward, new_twin, x):
            return
    finally:
        random.restore()
    raise ValueError(
        f"model: expected a model that takes some of the samples alone, got one that takes all {len(x)} and raises "
        f"{type(error).__name__} for a few of them ({str(error).partition(chr(10))[0]}): the number of samples may be "
        "written in forward or in output=; or a tensor in x that all samples share has as many rows by chance, for "
        f"which write t.expand({len(x)}, *t.shape)"
    ) from error


def _takes(forward: Forward, new_twin: Callable[[], Twin], x: Batch) -> bool:
    try:
        forward(new_twin().model, x)
    except Exception:
        return False
    return True


def _versions(model: nn.Module) -> dict[str, int]:
    return {name: version_of(parameter) for name, parameter in model.named_parameters()}


def _in_forward_order(groups: dict[str, list[str]], layers: Sequence[str]) -> dict[str, list[str]]:
    """Sorts the layers of each group, and the groups by their first layer."""
    place = {name: index for index, name in enumerate(layers)}
    members = {name: sorted(group, key=place.__getitem__) for name, group in groups.items()}
    return dict(sorted(members.items(), key=lambda item: place[item[1][0]]))
