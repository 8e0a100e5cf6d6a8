"""States that were saved and may be damaged: any fault of them is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def reason_of(error: Exception) -> str:
    """Why a file was refused, in one line: what a check of ours has said, or another error with its kind."""
    return (str(error) if type(error) is ValueError else f"{type(error).__name__} {error}").partition("\n")[0]


def parsed(make: Callable[[], _Result], expected: str) -> _Result:
    """What a function makes of a state.

    Args:
        make: The function.
        expected: What the state should have been, with the name of the argument.

    Raises:
        ValueError: If the state is anything else; the message says what was expected and what is wrong.
    """
    try:
        return make()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{expected}, got another ({reason})") from error
