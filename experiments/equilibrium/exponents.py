"""Exponents fitted to curves on log-log axes, beside those of the theorems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ahkernels.signal_propagation import PowerLaw, fit_power_law
from experiments.common.figures import Array

LEAST_ERROR = 1e-9  # of an exponent
FAR = 3  # standard errors
# What there is to say of fits to exact values whose theory lies FAR off.
REMARK = (
    "Values at infinite width are exact: a standard error is what the fitted form leaves of them at these depths, not "
    f"noise. Where theory lies over {FAR} of them off (*), the form lacks terms; with corrections for the slowest ones "
    "it comes closer."
)


class Fit(NamedTuple):
    """An exponent fitted to a curve, beside theory's; nan where theory has none."""

    name: str
    variable: str
    theory: float
    plain: PowerLaw
    corrected: PowerLaw | None

    @property
    def best(self) -> PowerLaw:
        """The power law with corrections, or without where there are none."""
        return self.corrected or self.plain

    @property
    def theory_off(self) -> float:
        """How many standard errors the theory lies off the exponent; nan where there is none."""
        return (self.theory - self.best.exponent) / max(self.best.exponent_standard_error, LEAST_ERROR)

    @property
    def mark(self) -> str:
        """A star where theory lies FAR off."""
        return "*" if abs(self.theory_off) > FAR else ""

    @property
    def legend(self) -> str:
        """The text with both exponents for a legend."""
        corrected = f"\nwith corrections {measured(self.corrected)}" if self.corrected else ""
        return f"slope {measured(self.plain)}{corrected}{self.mark}"


def fitted(name: str, variable: str, theory: float, x: Array, y: Array, corrections: Sequence[Array] = ()) -> Fit:
    """Fit a power law without and, if there are any, with corrections."""
    corrected = fit_power_law(x, y, corrections) if corrections else None
    return Fit(name, variable, theory, fit_power_law(x, y), corrected)


def measured(law: PowerLaw) -> str:
    """The exponent of a power law with its error, which has one digit."""
    error = max(law.exponent_standard_error, LEAST_ERROR)
    digits = min(9, max(2, -math.floor(math.log10(error))))
    return f"{law.exponent:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def slow(x: Array) -> list[Array]:
    """The terms by which the logarithm of a power of x is off (lemma 2)."""
    return [np.log(x) / x, 1 / x]


def constant(law: PowerLaw) -> str:
    """The constant of a power law with its error."""
    return f"{law.constant:.4g} ± {law.constant_standard_error:.1g}"


def row(fit: Fit) -> dict[str, Any]:
    """Make a line of the table of exponents."""
    values: dict[str, Any] = {"name": fit.name, "variable": fit.variable, "theory": fit.theory}
    values["theory_off"] = fit.theory_off
    for name, law in (("plain", fit.plain), ("corrected", fit.corrected)):
        for column in ("exponent", "constant"):
            values[f"{name}_{column}"] = getattr(law, column) if law else math.nan
            values[f"{name}_{column}_error"] = getattr(law, f"{column}_standard_error") if law else math.nan
    return values


def print_table(fits: Sequence[Fit]) -> None:
    """Print all exponents beside theory's, and how many standard errors this is off."""
    width = max(len(fit.name) for fit in fits)
    print(
        f"{'exponents':<{width}}  {'of':<5}  {'theory':>7}  {'fitted':<22}  {'with corrections':<22}  "
        f"{'off':>8}  constant"
    )
    for fit in fits:
        print(
            f"{fit.name:<{width}}  {fit.variable:<5}  {fit.theory:>7.4f}  {measured(fit.plain):<22}  "
            f"{measured(fit.corrected) if fit.corrected else '':<22}  "
            f"{f'{fit.theory_off:.1f}' + (fit.mark or ' '):>8}  {constant(fit.best)}"
        )
    if any(fit.mark for fit in fits):
        print(REMARK)
