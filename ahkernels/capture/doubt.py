"""Rules for another type of module than the one at hand are used only where they hold in a call on a few samples.

This is the comparison of the certificate for two random mixtures of the outputs of these samples: J^T v from what the
rule forms, beside autograd's own gradient. It is made in every call, also in those without a certificate, and does not
replace it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ahkernels.capture.backward import factors_of, gradients_of
from ahkernels.capture.call import Call
from ahkernels.capture.certify import Comparison, Reference, compare
from ahkernels.capture.traced import TracedLayer

_OUTPUTS = 2  # random mixtures of the outputs; more than one, since rules are given the gradients of several
_GRADIENT_BYTES = 128 << 20


def not_holding(call: Call, layers: Sequence[TracedLayer]) -> set[str]:
    """Finds the layers whose rule disagrees with autograd.

    Args:
        call: A call of the model on a few samples.
        layers: Layers with a rule.

    Returns:
        Their names.
    """
    if not layers:
        return set()
    generator = torch.Generator("cpu").manual_seed(0)
    cotangents = torch.randn(_OUTPUTS, call.output.shape[1], generator=generator, device="cpu").to(call.output)
    reference = Reference(call, layers, {layer.name for layer in layers}, cotangents, _GRADIENT_BYTES)
    gradients = gradients_of(call, layers, cotangents)
    found = set(reference.mixed)
    for layer in layers:
        try:
            (comparisons,) = compare(
                reference, [(layer, *factors_of(call, layer, gradients.pop(layer.name, None), _OUTPUTS))]
            )
        except Exception:  # of a rule for modules that have or compute something else
            found.add(layer.name)
            continue
        if not all(_agrees(one, reference) for one in comparisons):
            found.add(layer.name)
    reference.release()
    return found


def _agrees(one: Comparison, reference: Reference) -> bool:
    """Whether a comparison finds nothing; of gradients that are nan, a wrong rule might make finite numbers."""
    if math.isnan(one.difference):
        return False
    return one.beyond == 0 or one.beyond <= reference.noise(one.names)
