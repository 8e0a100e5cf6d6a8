"""Capture: from a model and data to the factors of its layers' tangent kernels.

The modules take part in this order. `selection` decides which modules are layers and which parameters are theirs.
`trace` runs the model on one sample and finds the order of the layers, their uses and their positions. `route` chooses
how a layer with several positions is contracted, and `plan` holds all these decisions. `run` captures the factors of as
many layers in one pass as fit the memory budget. `rules` have the factors of each kind of module, and `fallback` has
the Jacobians of layers without a rule. `twin` stands in for the model in every call of it, and `certificate` holds what
was captured against autograd. `kernels` and `explain` are what users call.
"""

from ahkernels.capture.explain import Explanation, LayerExplanation, explain
from ahkernels.capture.kernels import iter_tangent_kernels, tangent_kernels
from ahkernels.capture.plan import plan_capture
from ahkernels.capture.rules import Rule, register_rule
from ahkernels.capture.run import DEFAULT_MEMORY_BUDGET
from ahkernels.capture.selection import Layers

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "Explanation",
    "LayerExplanation",
    "Layers",
    "Rule",
    "explain",
    "iter_tangent_kernels",
    "plan_capture",
    "register_rule",
    "tangent_kernels",
]
