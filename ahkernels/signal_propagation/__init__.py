"""Signal propagation: how random networks of infinite width lose information with depth, and where losses balance.

    inputs -> network, with an activation -> propagation -> equilibrium and kernels

`finite_width` measures the same quantities in networks of finite width. Equation, theorem and section numbers are those
of Lou, Mingard and Hayou (ICML 2022). Everything is computed in fp64 on the CPU.
"""

from ahkernels.signal_propagation.activations import Activation, Erf, LeakyReLU, Smooth
from ahkernels.signal_propagation.equilibrium import (
    Asymptotics,
    InformationLoss,
    asymptotics,
    equilibrium,
    information_loss,
)
from ahkernels.signal_propagation.finite_width import Average, FiniteWidth, finite_width
from ahkernels.signal_propagation.inputs import InputPairs
from ahkernels.signal_propagation.kernels import LayerKernels, layer_kernels
from ahkernels.signal_propagation.network import DepthScales, Network, edge_of_chaos
from ahkernels.signal_propagation.power_law import PowerLaw, fit_power_law
from ahkernels.signal_propagation.propagation import Propagation, propagate

__all__ = [
    "Activation",
    "Asymptotics",
    "Average",
    "DepthScales",
    "Erf",
    "FiniteWidth",
    "InformationLoss",
    "InputPairs",
    "LayerKernels",
    "LeakyReLU",
    "Network",
    "PowerLaw",
    "Propagation",
    "Smooth",
    "asymptotics",
    "edge_of_chaos",
    "equilibrium",
    "finite_width",
    "fit_power_law",
    "information_loss",
    "layer_kernels",
    "propagate",
]
