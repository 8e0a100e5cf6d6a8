"""What a report costs with the samples or with the layers shared out over the ranks, and which of both costs less.

The cost is an estimate in seconds, from counts that all ranks know alike: the flops of the busiest rank, the bytes that
the rank with most to give sends, and a latency for each collective. Its constants are those of CPU cores and Ethernet:
on other processors and links the axis that costs less may not be the faster one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Shard: TypeAlias = Literal["samples", "layers"]

# By benchmarks.distributed: tiles of a core with all that is around them (distributed.json); 10 Gbit/s Ethernet, the
# slowest link of its projections; a sum of one number over two processes of a busy machine (distributed-budgets.json).
_FLOPS, _BANDWIDTH, _LATENCY = 1e11, 1.25e9, 4e-4  # flops and bytes a second, and seconds
# Collectives of a report beside norms: ranks tell one another of their plans, and sum what labels and traces need.
_OF_CALL: dict[Shard, int] = {"samples": 20, "layers": 10}
_OF_LAYER: dict[Shard, int] = {"samples": 7, "layers": 0}


@dataclass(frozen=True)
class ShardExplanation:
    """What a report takes if the ranks share out the samples, or the layers.

    Attributes:
        captured: The number of samples that each rank captures.
        flops: Floating-point operations of the busiest rank: its passes over the model, and its part of exact norms.
        sent: Bytes that each rank gives to the others, for norms or of its samples.
        collectives: How many collectives a report takes, about.
        seconds: The cost that shares are chosen by (`shard="auto"`): flops, bytes and collectives at fixed rates.
    """

    captured: tuple[int, ...]
    flops: int
    sent: tuple[int, ...]
    collectives: int
    seconds: float

    @classmethod
    def of(
        cls,
        shard: Shard,
        layers: int,
        captured: Sequence[int],
        flops: Sequence[float],
        sent: Sequence[int],
        collectives: int,
    ) -> ShardExplanation:
        """The work of the ranks for so many layers.

        Args:
            shard: What is shared out.
            layers: The number of layers.
            captured: The number of samples that each rank captures.
            flops: The flops of each rank.
            sent: The bytes that each rank gives to the others.
            collectives: How many collectives that takes.
        """
        collectives += _OF_CALL[shard] + _OF_LAYER[shard] * layers
        seconds = max(flops) / _FLOPS + max(sent) / _BANDWIDTH + collectives * _LATENCY
        return cls(tuple(captured), round(max(flops)), tuple(sent), collectives, seconds)


def cheaper(shards: Mapping[Shard, ShardExplanation]) -> Shard:
    """The axis that costs less; samples where both cost the same."""
    return min(shards, key=lambda one: (shards[one].seconds, one == "layers"))


def shares(costs: Mapping[str, float], ranks: int) -> list[list[str]]:
    """The layers of each rank: the one that costs most goes to the rank that has least so far, and so on."""
    found: list[list[str]] = [[] for _ in range(ranks)]
    held = [0.0] * ranks
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        rank = held.index(min(held))
        found[rank].append(name)
        held[rank] += costs[name]
    return found
