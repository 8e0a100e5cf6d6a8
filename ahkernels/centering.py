"""The `centering` argument: which mean a kernel loses before it is compared.

"global" is C = I - 11^T/(on), one mean over all samples and outputs (equation 6 of the paper). "per_output" is
C = (I_n - 11^T/n) (x) I_o, a mean over the samples for each output, as in Baratin et al. (2021) and in the figures of
the paper. For kernels over samples alone both are the same. None takes the kernel as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Centering: TypeAlias = Literal["global", "per_output"]
Centerings: TypeAlias = list[Centering] | tuple[Centering, ...]  # no str, which is a sequence, too
CENTERINGS: tuple[Centering, ...] = ("global", "per_output")
_EXPECTED = 'centering: expected "global" or "per_output"'


def require_centering(value: object, *, none: bool = False) -> None:
    """Raises ValueError naming `centering` for anything but a centering, or None where `none` allows it."""
    if value is None and none:
        return
    if not isinstance(value, str) or value not in CENTERINGS:
        raise ValueError(f"{_EXPECTED}{' or None' if none else ''}, got {value!r}")


def require_centerings(value: Centering | Centerings) -> tuple[Centering, ...]:
    """The given centering or centerings as a tuple; raises ValueError naming `centering` unless each comes once."""
    found: Sequence[Centering] = (value,) if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not found:
        raise ValueError(f"{_EXPECTED}, or a sequence of them, got {value!r}")
    for one in found:
        if not isinstance(one, str) or one not in CENTERINGS:
            raise ValueError(f"{_EXPECTED}, or a sequence of them, got {value!r}")
    if len(set(found)) != len(found):
        raise ValueError(f"centering: expected each once, got {value!r}")
    return tuple(CENTERINGS[CENTERINGS.index(one)] for one in found)  # plain strings, whatever kind of string came


def near_constant(o: int, centering: Centering | None) -> bool:
    """Whether centering may leave so little of a kernel over o outputs that fp32 has no digits of it.

    In deep networks the block of any two outputs comes close to constant. Per output, and in kernels over samples alone
    (o = 1), each such block is centered by itself.
    """
    return centering is not None and (o == 1 or centering == "per_output")
