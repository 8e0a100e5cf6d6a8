"""The table of what a measurement would do."""

from __future__ import annotations

import networks
import pytest
import torch

import ahkernels as ah


def test_explain():
    model = networks.networks_without_rules()["transformer"][0].eval()
    x = torch.randn(7, 6)
    found = ah.explain(model, x)
    assert [one.layer for one in found] == list(ah.tangent_kernels(model, x))
    by_name = {one.layer: one for one in found}
    assert (by_name["embed"].route, by_name["embed"].positions, by_name["embed"].parameters) == ("pairs", 3, 12)
    assert (by_name["head"].route, by_name["head"].flops) == ("factors", 7**2 * (4 + 9 * 3))
    assert by_name[""].route == "fallback"
    assert by_name[""].bytes == 4 * 7 * 3 * by_name[""].parameters
    assert by_name[""].parameters == 4 + 16
    image = ah.explain(networks.convolutional(), x)
    assert "jacobian" in {one.route for one in image}
    table = str(image).splitlines()
    assert len(table) == len(image) + 2 and table[0].split() == [
        *("layer", "kind", "route", "positions", "parameters", "Gflop", "MiB")
    ]
    with pytest.raises(ValueError, match="layers: expected names"):
        ah.explain(model, x, layers="nothing")
