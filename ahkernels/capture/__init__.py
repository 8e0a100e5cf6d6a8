"""Capture: from a model and data to the factors of its layers' tangent kernels.

The modules take part in this order. `options` has what users choose. `wrappers` finds the model itself, `batch` holds
its inputs, and `forward` calls it. `choice` finds the layers that users ask for, and `selection` which parameters are
theirs and which rules may be. `trace` runs the model on a few samples and finds the order of the layers, their uses and
their positions, and `doubt` which rules hold there. `route` chooses how a layer is contracted, `memory` divides the
memory budget, and `plan` holds all these decisions. `run` captures the factors of as many layers in one pass as fit the
budget: by a `call` of the model and a pass `backward`, in `blocks` of samples where one layer is too large.

`rules` have the factors of each kind of module, and `fallback` has the Jacobians of layers without a rule. `twin`
stands in for the model in every call of it. `certify` holds what was captured against autograd, `evaluation` finds
chance, and `structure` remembers both for later calls. `start` begins a capture, and `sharded` one of several processes
together. `kernels` and `explain` are what users call; `explanation` has what the latter returns.
"""

from ahkernels.capture.batch import Inputs
from ahkernels.capture.choice import Layers
from ahkernels.capture.explain import explain
from ahkernels.capture.explanation import Explanation, LayerExplanation
from ahkernels.capture.kernels import iter_tangent_kernels, tangent_kernels
from ahkernels.capture.options import DEFAULT_MEMORY_BUDGET, CaptureKeywords, CaptureOptions
from ahkernels.capture.plan import CapturePlan, plan_capture
from ahkernels.capture.rules import Rule, register_rule
from ahkernels.capture.run import Capture, CapturedKernel
from ahkernels.capture.sharded import ShardedCapture
from ahkernels.capture.start import start_capture

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "Capture",
    "CaptureKeywords",
    "CaptureOptions",
    "CapturePlan",
    "CapturedKernel",
    "Explanation",
    "Inputs",
    "LayerExplanation",
    "Layers",
    "Rule",
    "ShardedCapture",
    "explain",
    "iter_tangent_kernels",
    "plan_capture",
    "register_rule",
    "start_capture",
    "tangent_kernels",
]
