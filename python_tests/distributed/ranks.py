"""Processes that run functions together as the ranks of a process group.

They are forked from one process that has imported what they need, so that a pool is there at once.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 60  # seconds for a function, and for a collective


class Failed(Exception):
    """What a rank raised, as its type and message."""


def _serve(rank: int, size: int, store: str, seconds: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    groups = {ranks: dist.new_group(list(range(ranks)), timeout=timeout) for ranks in range(1, size + 1)}
    pipe.send("ready")
    while True:
        job = pipe.recv()
        if job is None:
            break
        function, ranks, args = job
        try:
            pipe.send((function(groups[ranks], *args), None))
        except Exception as error:
            pipe.send((None, (f"{type(error).__name__}: {error}", traceback.format_exc())))
    os._exit(0)  # a group that has met an error may take long to be destroyed


class Ranks:
    """A pool of processes. `run` has the first ones of them call a function together."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def run(self, ranks: int, function: Callable[..., Any], *args: Sequence[Any]) -> list[Any]:
        """The results of function(group, *args of the rank) on each rank, or `Failed` where it raised an error.

        Args:
            ranks: How many processes take part.
            function: A function of a module.
            *args: Each a list with one value for each rank.
        """
        for rank, pipe in enumerate(self._pipes[:ranks]):
            pipe.send((function, ranks, tuple(one[rank] for one in args)))
        found = []
        for rank, pipe in enumerate(self._pipes[:ranks]):
            assert pipe.poll(2 * TIMEOUT), f"rank {rank} of {ranks} hangs in {function.__name__}"
            try:
                result, error = pipe.recv()
            except EOFError:
                result, error = None, ("died", "")
            found.append(result if error is None else Failed(*error))
        return found

    def all(self, ranks: int, function: Callable[..., Any], *args: Sequence[Any]) -> list[Any]:
        """The same where no rank may fail."""
        found = self.run(ranks, function, *args)
        for rank, one in enumerate(found):
            assert not isinstance(one, Failed), f"rank {rank}: {one.args[1]}"
        return found


def start(function: Callable[..., None], *args: Any) -> mp.Process:
    """A process that calls a function of a module."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["python_tests.distributed.cases"])
    process = context.Process(target=function, args=args, daemon=True)
    process.start()
    return process


@contextmanager
def ranks_of(size: int, folder: Path, seconds: int = TIMEOUT) -> Iterator[Ranks]:
    """A pool of so many processes, whose collectives may take so many seconds."""
    pipes, processes = [], []
    for rank in range(size):
        here, there = mp.Pipe()
        process = start(_serve, rank, size, str(folder / "store"), seconds, there)
        there.close()  # so that the pipe ends with the process
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        assert pipe.poll(120), "a rank does not start"
        assert pipe.recv() == "ready"
    try:
        yield Ranks(pipes)
    finally:
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
        for process in processes:
            process.join(10)
            process.kill()
