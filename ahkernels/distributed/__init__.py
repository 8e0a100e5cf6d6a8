"""Measurements over several processes, each with some of the samples, by torch.distributed."""

from ahkernels.distributed.group import Group, RankError
from ahkernels.distributed.samples import ShardedSamples

__all__ = ["Group", "RankError", "ShardedSamples"]
