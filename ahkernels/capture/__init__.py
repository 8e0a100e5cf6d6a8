"""Capture: from a model and data to the factors of its layers' tangent kernels.

Order of events: `selection` says which modules are layers and which parameters are theirs, `trace` runs the model on
one sample to see how often and in which order they are used, `run` collects the factors in groups of layers that fit
the memory budget, with `route` deciding how layers with several positions are contracted. `rules` says how the factors
of each kind of module come about, `fallback` has the layers without a rule.
"""

from ahkernels.capture.explain import Explanation, LayerExplanation, explain
from ahkernels.capture.kernels import iter_tangent_kernels, plan_capture, tangent_kernels
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
