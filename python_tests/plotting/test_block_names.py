"""Blocks of a network from the names of its layers."""

from __future__ import annotations

import pytest

from ahkernels.plotting.blocks import Block, blocks_of, shared_path
from python_tests.plotting.reports import NETWORKS, bert, mlp, resnet50, vit


def summary(names: list[str]) -> list[tuple[str, int | None, int]]:
    """Family, number and size of each block."""
    return [(block.family, block.number, block.stop - block.start) for block in blocks_of(names)]


def names(layers: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in layers]


def test_a_transformer_has_its_blocks() -> None:
    numbered = [("blocks", number, 6) for number in range(12)]
    assert summary(names(vit())) == [("patch_embed, …", None, 2), *numbered, ("norm, head", None, 2)]


def test_stages_of_a_convolutional_network_are_families() -> None:
    found = summary(names(resnet50()))
    assert found[:4] == [("conv1, bn1", None, 2), ("layer1", 0, 8), ("layer1", 1, 6), ("layer1", 2, 6)]
    assert [number for family, number, _ in found if family == "layer3"] == [0, 1, 2, 3, 4, 5]
    assert found[-1] == ("fc", None, 1)


def test_layers_beside_the_blocks_have_the_name_of_their_module() -> None:
    found = summary(names(bert()))
    assert found[0] == ("bert.embeddings", None, 3) and found[1] == ("bert.encoder.layer", 0, 8)


def test_layers_of_a_plain_network_are_blocks_by_themselves() -> None:
    assert summary(names(mlp(3))) == [("", 0, 1), ("", 2, 1), ("", 4, 1)]
    assert summary(["fc1", "fc2", "out"]) == [("fc", 1, 1), ("fc", 2, 1), ("out", None, 1)]
    assert summary([f"layers.{i}.linear" for i in range(3)]) == [("layers", i, 1) for i in range(3)]


def test_too_many_blocks_give_way_to_a_level_above() -> None:
    dense = [f"dense{i}.layer{j}.{part}" for i in range(4) for j in range(16) for part in ("norm", "conv")]
    assert summary(dense) == [("dense", i, 32) for i in range(4)]
    assert len(blocks_of(names(NETWORKS["blocks of three"]))) == 100, "there is no level above"


def test_layers_between_blocks_belong_to_their_stage() -> None:
    parts = [*(f"blocks.{j}.{part}" for j in range(2) for part in ("attn", "mlp")), "downsample"]
    swin = ["stem", *(f"layers.{i}.{part}" for i in range(2) for part in parts)]
    of_stages = [[(f"layers.{i}", 0, 2), (f"layers.{i}", 1, 2), (f"layers.{i}", None, 1)] for i in range(2)]
    assert summary(swin) == [("stem", None, 1), *of_stages[0], *of_stages[1]]


def test_a_parameter_of_the_block_itself_is_in_it() -> None:
    found = [f"blocks.{i}{part}" for i in range(3) for part in ("", ".norm", ".fc")]
    assert summary(found) == [("blocks", i, 3) for i in range(3)]


@pytest.mark.parametrize("layers", [*NETWORKS.values(), mlp(1), []], ids=[*NETWORKS, "one layer", "no layer"])
def test_each_layer_is_in_one_block(layers: list[tuple[str, str]]) -> None:
    blocks = blocks_of(names(layers))
    assert [index for block in blocks for index in range(block.start, block.stop)] == list(range(len(layers)))


def test_middle_counts_layers_from_one() -> None:
    assert Block("a", 0, 0, 1).middle == 1 and Block("a", 0, 2, 6).middle == 4.5


def test_shared_path_is_a_module() -> None:
    assert shared_path(["a.b.c1", "a.b.c2"]) == "a.b"
    assert shared_path(["a.b", "a.b.c"]) == "a"
    assert shared_path(["ab.c", "ad.c"]) == shared_path([]) == ""
