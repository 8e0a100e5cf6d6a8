"""A study: its command line, its runs, its figures, and the end of a user's mistake in one message."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ahkernels as ah
from experiments.common import command_line
from experiments.common.data import CorruptDataError, Dataset, MissingDataError
from experiments.common.folder_lock import locked
from experiments.common.jobs import Config, Job, Run, in_turn, read, share
from experiments.common.store import StoreError, describe_environment, remove_temporary_files, usable
from experiments.common.training import DivergedError, flushed_denormals


def _no_check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    pass


@dataclass(frozen=True)
class Study:
    """What a study consists of.

    Attributes:
        name: The name of the study's package in ``experiments``.
        description: The docstring of the study, whose first line its --help shows.
        options: Adds the study's own options to a parser. Those of every study come after them: --output, --threads,
            --overwrite, and for a study that trains --checkpoint-every and --device.
        draw: Draws figures and prints tables. It gets the parsed command line, the data set, and the runs by name.
        jobs: Makes the jobs from the parsed command line and the data set.
        config: Names of the options that determine the numbers of every run; with "model" come the options that it is
            made of.
        presets: Values of options by the name of the preset.
        distinct: Options of several values that may not have a value twice.
        check: Makes the parser exit with a message about values that do not fit one another.
        load: Makes the data set from the parsed command line.
        trains: Whether the jobs train networks.
        shared: Whether processes share the jobs. Otherwise one process does them in turn.
        tables: Names of the tables that a run may leave beside its metrics.
        flush_denormals: Whether training takes denormal numbers as zero.
        checkpoint_every: The default of --checkpoint-every.
        remedy: What to choose where training diverges, for jobs in turn.
        folder: The name of the default output folder in ``runs``: NAME stands for the study, DATASET for the data set,
            and [-MODEL] for the model if it is another than the default.
    """

    name: str
    description: str | None
    options: Callable[[argparse.ArgumentParser], None]
    draw: Callable[[argparse.Namespace, Dataset, dict[str, Run]], None]
    jobs: Callable[[argparse.Namespace, Dataset], list[Job]]
    config: Sequence[str] = ()
    presets: Mapping[str, Mapping[str, Any]] | None = None
    distinct: Sequence[str] = ()
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] = _no_check
    load: Callable[[argparse.Namespace], Dataset] = command_line.load
    trains: bool = True
    shared: bool = False
    tables: Sequence[str] = ()
    flush_denormals: bool = False
    checkpoint_every: int = 500
    remedy: str = "a smaller --lr"
    folder: str = "NAME-DATASET"

    @property
    def command(self) -> str:
        """The command that runs the study, without options."""
        return f"python -m experiments.{self.name}"

    def parser(self) -> argparse.ArgumentParser:
        """The command line without presets."""
        p = command_line.command_line(self.command, self.description)
        self.options(p)
        default = self.folder.replace("NAME", self.name)
        command_line.add(p, "--output", help=f"folder for the results (default: runs/{default})")
        runs = "these runs" if self.shared else "the runs of this command"
        one = "; for one process" if self.shared else ""
        command_line.add(p, "--overwrite", help=f"discard {runs} in the output folder{one}")
        if self.trains:
            command_line.add(p, "--checkpoint-every", default=self.checkpoint_every)
        command_line.add(p, "--threads")
        if self.trains:
            command_line.add(p, "--device")
        return p

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse and check a command line; exits with a message that names the option if a value is wrong."""
        p = self.parser()
        args = p.parse_args(arguments) if self.presets is None else command_line.parse(p, self.presets, arguments)
        command_line.require_distinct(p, args, *self.distinct)
        self.check(p, args)
        command_line.require_data_dir(p, args)
        args.output = args.output or self._default_output(args)
        return args

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the study; a mistake of the user's ends in one message and status 2, not in a traceback."""
        arguments = sys.argv[1:] if arguments is None else arguments
        args = self.parse(arguments)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        again = f"{self.command} {shlex.join(a for a in arguments if a != '--overwrite')}".strip()
        try:
            return self._run(args, again)
        except (command_line.UsageError, StoreError, DivergedError, MissingDataError, CorruptDataError) as error:
            print(f"{self.command}: error: {error}", file=sys.stderr)
            return 2

    def _run(self, args: argparse.Namespace, command: str) -> int:
        """All runs, the figures and the tables; returns the exit status."""
        with flushed_denormals() if self.flush_denormals else nullcontext() as flushed:
            dataset = self.load(args)
            device = args.device if self.trains else torch.device("cpu")
            environment = describe_environment(device, ah.build_info())
            if self.flush_denormals:
                environment["denormals_are_zero"] = flushed
            dataset = dataset.to(device)
            jobs = [replace(job, config=self._config(args, job, dataset)) for job in self.jobs(args, dataset)]
            if self.shared:
                status = share(args.output, jobs, environment, command, args.overwrite, self.tables)
            else:
                status, runs = in_turn(
                    args.output, jobs, environment, command, self.remedy, args.overwrite, self.tables
                )
        if status:
            return status
        with usable(args.output), locked(args.output):  # processes take turns, so that the last one draws the latest
            remove_temporary_files(args.output)
            if self.shared:
                runs = {job.name: read(args.output, job) for job in jobs}
            self.draw(args, dataset, runs)
        return 0

    def _config(self, args: argparse.Namespace, job: Job, dataset: Dataset) -> Config:
        """All that determines the numbers of a run, up to the machine it runs on."""
        recipe = {} if job.recipe is None else asdict(job.recipe)
        return command_line.values(args, self.config) | recipe | dataset.describe() | job.settings

    def _default_output(self, args: argparse.Namespace) -> Path:
        name = self.folder.replace("NAME", self.name).replace("DATASET", args.dataset)
        model = getattr(args, "model", "feedforward")
        return Path("runs") / name.replace("[-MODEL]", "" if model == "feedforward" else f"-{model}")
