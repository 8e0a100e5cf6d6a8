"""The layer where alignment peaks, as a power of the depth: lines through the peaks on log-log axes (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from ahkernels.signal_propagation import PowerLaw, fit_power_law
from experiments.common.figures import Array

THEORY = 3 / 5  # corollary 1
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Line:
    """layer = constant * depth^slope through peaks at ``layers``, one for each of ``depths`` (which may repeat)."""

    depths: Sequence[int]
    layers: Sequence[int]

    @property
    def fitted(self) -> bool:
        """Whether there are enough depths for a fit with an error."""
        return len(set(self.depths)) > 2

    @cached_property
    def best(self) -> PowerLaw:
        """The least-squares line in the logarithms. Raises ValueError where it is not ``fitted``."""
        return fit_power_law(self.depths, self.layers)

    @property
    def quantile(self) -> float:
        """The quantile of Student's t for a two-sided interval."""
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(self.depths) - 2))

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the slope, if peaks scatter around the line normally and alike."""
        reach = self.quantile * self.best.exponent_standard_error
        return self.best.exponent - reach, self.best.exponent + reach

    def band(self, depths: Array) -> tuple[Array, Array]:
        """The line's interval at each of these depths."""
        logs = np.log(self.depths)
        spread = self.best.residual * np.sqrt(len(logs) / (len(logs) - 2))
        distance = (np.log(depths) - logs.mean()) ** 2 / ((logs - logs.mean()) ** 2).sum()
        reach = np.exp(self.quantile * spread * np.sqrt(1 / len(logs) + distance))
        return self.best(depths) / reach, self.best(depths) * reach

    @property
    def theory_constant(self) -> float:
        """The C whose line C * depth^THEORY is nearest in the logarithms."""
        return float(np.exp(np.mean(np.log(self.layers) - THEORY * np.log(self.depths))))

    @property
    def theory_residual(self) -> float:
        """The root mean square distance of log layer from the line with the theory's slope."""
        logs = np.log(self.layers) - THEORY * np.log(self.depths)
        return float(np.std(logs))
