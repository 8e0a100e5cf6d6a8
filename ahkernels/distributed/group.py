"""A process group as measurements use it: few collectives, and an error on every rank where one of them fails.

An ordinary error, such as labels that do not fit, is told to the other ranks by the exchange that comes next, so that
the group stays fit for use. Where a rank fails between two exchanges, or dies, the others are in the middle of a
collective. They find its message in the group's store, or the backend tells them that a connection is lost; then those
that are left find out in the store who is missing.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_Result = TypeVar("_Result")

# Seconds: the longest pause between two looks at a collective, from one look at the store to the next, and for what the
# ranks that are left say of themselves.
_LONGEST_PAUSE, _LOOK, _ANSWER = 1e-3, 0.5, 5.0


class KnownError(ValueError):
    """An error that all ranks raise by themselves, so that none of them has to be told."""


class RankError(RuntimeError):
    """Another rank of the process group could not go on; the message names it and says why.

    Example:
        >>> import ahkernels as ah
        >>> try:
        ...     raise ah.RankError("rank 1 stopped: ValueError: y: expected 128 class indices, got 127")
        ... except RuntimeError as error:
        ...     print(error)
        rank 1 stopped: ValueError: y: expected 128 class indices, got 127
    """


_groups: dict[str | None, Group] = {}  # by the name of the process group


class Group:
    """The ranks of a process group.

    Args:
        process_group: A group of torch.distributed, which this process is in.

    Attributes:
        rank: The rank of this process in the group.
        size: The number of ranks.
        traffic: Bytes that this rank has given to collectives so far, by kind: "sum" and "gather", once each, however
            often the backend sends them on, and "shift", which go to one other rank.
        collectives: How many collectives this rank has taken part in so far.
        waited: Seconds that this rank has waited for collectives so far, by kind.

    Raises:
        TypeError: For anything but a process group.
        ValueError: For a group that this process is not in.
    """

    def __init__(self, process_group: Any) -> None:
        if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
            raise TypeError(
                "process_group: expected a group of torch.distributed, such as torch.distributed.group.WORLD after "
                f"init_process_group, got {type(process_group).__name__}"
            )
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if self.rank < 0:
            raise ValueError("process_group: expected a group with this process in it, got another")
        self.traffic = {"sum": 0, "gather": 0, "shift": 0}
        self.collectives = 0
        self.waited = {"sum": 0.0, "gather": 0.0, "shift": 0.0}
        # A group that outlives destroy_process_group() ends the process with an abort.
        self._reference = weakref.ref(process_group)
        self._name = process_group.group_name
        config = str(dist.get_backend_config(process_group))  # such as "cpu:gloo,cuda:nccl"
        self._devices = [one.partition(":")[0] for one in config.split(",")]
        self._calls = itertools.count()
        self._call = ""

    @classmethod
    def of(cls, process_group: Any) -> Group:
        """The ranks of a process group; the same object for the same group."""
        if isinstance(process_group, Group):
            return process_group
        name = getattr(process_group, "group_name", None)
        found = _groups.get(name)
        if found is None or found._reference() is not process_group:
            found = _groups[name] = cls(process_group)
        return found

    @property
    def _group(self) -> dist.ProcessGroup:
        found = self._reference()
        if found is None:
            raise RuntimeError("process_group: expected one that is in use, got one that has been destroyed")
        return found

    # ---- collectives

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the tensors of all ranks, the same bits on each."""
        return self._reduced(part, dist.ReduceOp.SUM)

    def maximum(self, part: Tensor) -> Tensor:
        """The largest numbers of the tensors of all ranks."""
        return self._reduced(part, dist.ReduceOp.MAX)

    def _reduced(self, part: Tensor, how: Any) -> Tensor:
        found = self._carried(part.detach()).clone(memory_format=torch.contiguous_format)
        self._count("sum", found)
        self._wait(dist.all_reduce(found, how, group=self._group, async_op=True), "sum")
        return found.to(part.device)

    def gather(self, part: Tensor, counts: Sequence[int] | None = None) -> list[Tensor]:
        """The tensor of each rank.

        Args:
            part: The tensor of this rank.
            counts: The lengths of the first dimension on each rank; None where all are the same.
        """
        most = len(part) if counts is None else max(counts)
        padded = self._carried(part.new_zeros(most, *part.shape[1:]))
        padded[: len(part)] = part
        self._count("gather", padded)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        self._wait(dist.all_gather(found, padded, group=self._group, async_op=True), "gather")
        here = [one.to(part.device) for one in found]
        return here if counts is None else [one[:count] for one, count in zip(here, counts, strict=True)]

    def shift(self, send: Tensor, to: int, receive: Tensor, of: int) -> Callable[[], None]:
        """Starts to send rows to one rank and to receive some of another; call what it returns to wait for them.

        Args:
            send: Contiguous rows for the rank `to`; there may be none.
            to: A rank.
            receive: Contiguous memory for the rows of the rank `of`.
            of: A rank.
        """
        if 0 in send.shape[1:]:
            return lambda: None
        self._count("shift", send)
        sent, received = [0] * self.size, [0] * self.size
        sent[to], received[of] = send.numel(), receive.numel()
        # Bytes, which every backend carries.
        work = dist.all_to_all_single(
            receive.view(-1).view(torch.uint8),
            send.reshape(-1).view(torch.uint8),
            [count * receive.itemsize for count in received],
            [count * send.itemsize for count in sent],
            group=self._group,
            async_op=True,
        )
        return lambda: self._wait(work, "shift")

    def _count(self, kind: str, given: Tensor) -> None:
        self.traffic[kind] += given.nbytes
        self.collectives += 1

    # ---- agreement

    def exchange(self, value: Any) -> list[Any]:
        """What each rank has to tell, fit for JSON; raises RankError where a rank tells of an error instead."""
        found = self._exchange({"value": value})
        self._raise_for_others(found)
        return [one["value"] for one in found]

    def everywhere(self, action: Callable[[], _Result]) -> _Result:
        """Does something on every rank.

        Where one of them fails, it raises its own error, and the others raise RankError.
        """
        return self.collect(lambda: (action(), None))[0]

    def collect(self, action: Callable[[], tuple[_Result, Any]]) -> tuple[_Result, list[Any]]:
        """Does something on every rank, and exchanges what each has to tell of it, fit for JSON; see `everywhere`."""
        try:
            result, value = action()
        except (RankError, KnownError):  # the others know
            raise
        except Exception as error:
            self._exchange({"error": f"{type(error).__name__}: {error}"})
            raise
        return result, self.exchange(value)

    def _raise_for_others(self, found: Sequence[dict[str, Any]]) -> None:
        failed = {rank: one["error"] for rank, one in enumerate(found) if "error" in one}
        if failed:
            raise RankError("; ".join(f"rank {rank} stopped: {error}" for rank, error in failed.items()))

    def _exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        counts = [int(one) for one in self.gather(torch.tensor([len(text)]))]
        return [json.loads(bytes(one.tolist())) for one in self.gather(text, counts)]

    def _carried(self, tensor: Tensor) -> Tensor:
        """A tensor on a device whose tensors the backend of the group takes."""
        return tensor if tensor.device.type in self._devices else tensor.to(self._devices[0])

    # ---- faults

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call that all ranks take part in: an error inside is told to those that wait in a collective."""
        if self._call:  # inside of another one
            yield
            return
        self._call = f"ahkernels/{self._name}/{next(self._calls)}"
        try:
            yield
        except (RankError, KnownError, GeneratorExit):
            raise
        except BaseException as error:
            with suppress(TimeoutError):
                self._say("failed", f"rank {self.rank} stopped: {type(error).__name__}: {error}")
            raise
        finally:
            self._call = ""

    def _wait(self, work: Any, kind: str) -> None:
        """Waits for a collective; raises RankError if another rank cannot take part any more."""
        start = time.monotonic()
        pause, look = 1e-5, start + _LOOK
        try:
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                if time.monotonic() > look:
                    self._raise_for_failed()
                    look = time.monotonic() + _LOOK
            work.wait()
        except RankError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise RankError(self._lost(f"the backend says: {reason}")) from error
        self.waited[kind] += time.monotonic() - start

    def _raise_for_failed(self) -> None:
        """Raises RankError if another rank has said that it cannot go on."""
        with suppress(TimeoutError):
            failed = self._said("failed")
            if failed is not None:
                raise RankError(f"{failed}; make a new process group before the next call")
            if self._said("lost") is not None:
                raise RankError(self._lost("another rank has got no answer"))

    def _lost(self, reason: str) -> str:
        """What is to be said where a collective has no end: who does not answer when all ranks that wait are called."""
        missing, end = [rank for rank in range(self.size) if rank != self.rank], time.monotonic() + _ANSWER
        store = ""
        try:
            failed = self._said("failed")
            if failed is not None:
                return f"{failed}; make a new process group before the next call"
            self._say("lost", "yes")  # so that the others come here, too
            self._say(f"left/{self.rank}", "yes")
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if self._said(f"left/{rank}") is None]
                time.sleep(_LONGEST_PAUSE)
        except TimeoutError:
            store = " (the store of the group does not answer any more)"
        who = f"rank {', '.join(map(str, missing))}" if missing else "none: a connection between two ranks is lost"
        return f"process_group: expected an answer of every rank, got none of {who}{store}; {reason}"

    def _say(self, what: str, text: str) -> None:
        self._in_time(lambda store: store.set(f"{self._call}/{what}", text))

    def _said(self, what: str) -> str | None:
        key = f"{self._call}/{what}"

        def read(store: Any) -> str | None:
            return bytes(store.get(key)).decode() if store.check([key]) else None

        return self._in_time(read)

    def _in_time(self, action: Callable[[Any], _Result]) -> _Result:
        """What an action with the group's store gives; raises TimeoutError where the store does not answer."""
        found: list[_Result] = []

        def act() -> None:
            with suppress(Exception):  # the process with the store is gone
                found.append(action(dist.distributed_c10d._get_default_store()))

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(_ANSWER)
        if not found:
            raise TimeoutError
        return found[0]


def watched(process_group: Any) -> AbstractContextManager[None]:
    """See `Group.watched`; nothing without a group."""
    return nullcontext() if process_group is None else Group.of(process_group).watched()


def everywhere(process_group: Any, action: Callable[[], _Result]) -> _Result:
    """See `Group.everywhere`; without a group it is done here alone."""
    if process_group is None:
        return action()
    group = Group.of(process_group)
    with group.watched():
        return group.everywhere(action)
