"""The command `ahkernels`: what this machine has, a measurement from files, and pictures of one."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from ahkernels.command_line import info, measure, plot

_COMMANDS = (info, measure, plot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Those of the command line; by default the ones that this process was started with.

    Returns:
        The exit status: 0, 2 for a mistake, which is told in a sentence on stderr, or 130 for one that was interrupted.
    """
    parser = argparse.ArgumentParser("ahkernels", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for one in _COMMANDS:
        name = one.__name__.rpartition(".")[2]
        summary = (one.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=one.__doc__)
        one.add_arguments(command)
        command.set_defaults(run=one.run)
    chosen = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"ahkernels: warning: {message}", file=sys.stderr)
        try:
            chosen.run(chosen)
        except Exception as error:  # of the model's own code, too
            if chosen.traceback:
                raise
            told = isinstance(error, (ValueError, OSError, ImportError)) or str(error).partition(":")[0].isidentifier()
            print(f"ahkernels: error: {'' if told else f'{type(error).__name__}: '}{error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("ahkernels: interrupted", file=sys.stderr)
            return 130
    return 0
