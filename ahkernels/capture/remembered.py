"""What the trace of an earlier capture found, for captures of the same structure that are not certified.

A call on a few samples goes before these, too, without what finds faults in a model. Where it draws random numbers,
writes to a parameter or to its inputs, or uses the layers in another way than the trace did, the model is traced anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

from torch import nn

from ahkernels.capture.batch import Batch
from ahkernels.capture.call import call_model
from ahkernels.capture.forward import Forward
from ahkernels.capture.guard import RandomNumbers, version_of
from ahkernels.capture.selection import Layer
from ahkernels.capture.trace import Trace, few_samples
from ahkernels.capture.traced import TracedLayer
from ahkernels.capture.twin import Twin

_OF_A_TRACE = [one.name for one in fields(TracedLayer) if one.name not in {own.name for own in fields(Layer)}]


class RememberedTrace:
    """A trace without the modules of its model, which does not live longer for it.

    Args:
        trace: A trace in which every layer has the first of its rules without doubt, and no random number is drawn.
    """

    def __init__(self, trace: Trace) -> None:
        self._bytes_per_sample, self._dtype = trace.bytes_per_sample, trace.dtype
        self._layers = {layer.name: {name: getattr(layer, name) for name in _OF_A_TRACE} for layer in trace.layers}
        self._shapes = trace.shapes

    @classmethod
    def of(cls, trace: Trace) -> RememberedTrace | None:
        """What may be used again of a trace; None for nothing."""
        plain = all(layer.rule is not None and not layer.doubtful for layer in trace.layers)
        return cls(trace) if plain and not trace.draws else None

    def again(
        self,
        forward: Forward,
        new_twin: Callable[..., Twin],
        model: nn.Module,
        x: Batch,
        layers: Sequence[Layer],
        random: RandomNumbers,
    ) -> Trace | None:
        """The trace for other parameters and samples; None where the model has to be traced anew.

        Args:
            forward: How the model is called.
            new_twin: Makes a twin of the model.
            model: The network itself.
            x: Its inputs.
            layers: The layers to record.
            random: The states of random numbers before.
        """
        few = x[few_samples(len(x))]
        written = [*model.parameters(), *few.tensors]
        versions = [version_of(one) for one in written]
        try:
            call = call_model(forward, new_twin(), few, layers)
        except Exception:  # which the trace explains
            return None
        if random.drawn():  # by the model, or by another thread, whose numbers are not to come once more
            return None
        if [version_of(one) for one in written] != versions or call.shapes != self._shapes:
            return None
        by_name = {layer.name: layer for layer in layers}
        traced = [TracedLayer(**vars(by_name[name]), **found) for name, found in self._layers.items()]
        return Trace(traced, call.output.detach(), False, self._bytes_per_sample, self._dtype, self._shapes)
