"""A layer as a call of the model uses it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ahkernels.capture.selection import Layer


@dataclass(frozen=True)
class TracedLayer(Layer):
    """A layer and how a call of the model uses it. Its rule is None where the one for its kind does not apply.

    Attributes:
        positions: Positions of all uses together.
        d: The length of its forward factor at one position; 0 where there is none.
        m: The length of its backward factor at one position, for one output.
        one_hot: Whether its forward factor is one-hot, and captured as integers.
    """

    positions: int
    d: int
    m: int
    one_hot: bool

    @classmethod
    def by_fallback(cls, layer: Layer, model: nn.Module) -> TracedLayer:
        """Describes a layer whose Jacobian comes from `ahkernels.capture.fallback`: one position, and no input."""
        parameters = sum(model.get_parameter(name).numel() for name in layer.parameters)
        own = layer.name, layer.module, layer.parameters
        return cls(*own, None, doubtful=False, others=(), positions=1, d=0, m=parameters, one_hot=False)

    @property
    def bias(self) -> bool:
        """Whether b = 1 is added to the forward Gram of its factors, as its rule or the fallback forms them."""
        return self.rule is None or self.rule.has_bias(self.module)
