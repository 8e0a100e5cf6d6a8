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
    assert by_name["(root)"].route == "factors"
    assert by_name["(root)"].bytes == 4 * 7 * 3 * by_name["(root)"].parameters
    assert by_name["(root)"].parameters == 4 + 16
    assert ah.explain(networks.Tied(), x)[0].route == "fallback"
    image = ah.explain(networks.convolutional(), x)
    assert "jacobian" in {one.route for one in image}
    table = str(image).splitlines()
    assert len(table) == len(image) + 3 and table[0].split() == [
        *("layer", "kind", "route", "order", "positions", "parameters", "Gflop", "MiB")
    ]
    assert table[-1] == f"expected peak: {image.peak_bytes / 2**20:.0f} MiB beyond model and inputs"
    with pytest.raises(ValueError, match="layers: expected names"):
        ah.explain(model, x, layers="nothing")


def test_expected_peak_of_passes():
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    x = torch.randn(1000, 64)
    of_layer = 4 * 1000 * (64 + 64 * 64)
    in_one_pass = ah.explain(model, x).peak_bytes
    in_several = ah.explain(model, x, memory_budget=2 * of_layer).peak_bytes
    assert 4 * of_layer < in_one_pass <= 4 * of_layer + (128 << 20)  # with a chunk of samples
    assert of_layer < in_several <= 2 * of_layer
    assert ah.explain(model, x, memory_budget=1).peak_bytes > of_layer  # which cannot be cut any smaller


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_totals_of_a_table_and_their_units(dtype):
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3))).to(dtype)
    found = ah.explain(model, torch.randn(1000, 64, dtype=dtype), outputs=[0, 1])
    assert [one.bytes for one in found] == [1000 * (64 + 2 * 64) * dtype.itemsize] * 3
    columns = str(found).splitlines()[-2].split()
    assert columns == [f"{sum(one.flops for one in found) / 1e9:.3f}", f"{found[0].bytes / 2**20:.1f}"]


def test_an_explanation_is_a_table_of_html_in_notebooks() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    found = ah.explain(model, torch.randn(6, 4))
    page = found._repr_html_()
    assert page.count("<tr>") == 1 + 2 + 1  # headings, layers, totals
    assert f"{found.peak_bytes / 2**20:.0f} MiB beyond model and inputs" in page
