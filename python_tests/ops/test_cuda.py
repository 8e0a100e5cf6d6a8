"""On a CUDA device: what only a device has (streams, graphs, devices, its memory), and whole measurements on it."""

from __future__ import annotations

import networks
import pytest
import reference
import torch
from batches import one_layer
from torch import Tensor

import ahkernels as ah
from ahkernels import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PRECISIONS = {"highest": 1e-6, "high": 3e-5, "medium": 1e-2}  # of the norm of K


def factors(n: int, s: int, o: int, d: int, m: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(n, s, d, dtype=torch.float64).to("cuda", dtype),
        torch.randn(n, s, o, m, dtype=torch.float64).to("cuda", dtype),
    )


def row_means(k: Tensor, o: int) -> Tensor:
    return k.mean(1).view(-1, o).cuda()


def square(forward: Tensor, backward: Tensor, means: Tensor, precision: str = "highest") -> Tensor:
    return ops.centered_inner_products(one_layer(forward, backward, 0.0), [means], precision)


def test_kernels_are_in_use():
    info = ah.build_info()
    assert info["implementations"]["cuda"] == "kernels", info["cuda"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2, 3, 5), (700, 1, 10, 40, 300), (300, 1, 7, 9, 1000), (150, 3, 4, 20, 70), (40, 1, 100, 5, 64)],
    ids=str,
)
def test_precisions(shape, precision):
    forward, backward = factors(*shape)
    k = reference.kernel(forward.cpu(), backward.cpu(), 0.0)
    gram = ops.tangent_gram(one_layer(forward, backward, 0.0), precision)
    assert torch.equal(gram, gram.T)
    assert (gram.cpu() - k).norm() <= PRECISIONS[precision] * k.norm()
    got = square(forward, backward, row_means(k, shape[2]), precision)
    assert (
        float((got.cpu() - reference.centered(k).square().sum()).abs())
        <= 2 * PRECISIONS[precision] * float(k.norm()) ** 2
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("o", [1, 3, 10])
def test_near_constant_kernels(o, precision):
    """Against the same factors, centered in float64 before they are multiplied."""
    spread = 1e-6 if precision == "highest" else 1e-3
    forward, backward = factors(200, 1, o, 30, 80)
    forward, backward = forward[:1] + spread * forward, backward[:1] + spread * backward
    j = torch.einsum("xim,xd->ximd", backward[:, 0].double(), forward[:, 0].double()).flatten(2).cpu()
    got = ops.per_output_inner_products(one_layer(forward, backward, 0.0), precision)[:, 0, 0]
    for found, centering in zip(got, ("global", "per_output"), strict=True):
        psi = reference.centered_features(j, centering).flatten(0, 1)
        expected = float((psi @ psi.T).square().sum())
        assert float(found) == pytest.approx(expected, rel=2 * PRECISIONS[precision])


@pytest.mark.parametrize("outputs", ["all", "trace", "sum", 0])
@pytest.mark.parametrize("name", list(networks.all_networks()))
def test_alignment_is_that_of_the_cpu(name, outputs):
    model = networks.all_networks()[name]
    x = torch.randn(50, 6)
    y = torch.randint(0, model(x).shape[1], (50,))
    expected = ah.layerwise_alignment(model.double(), x.double(), y, outputs=outputs)
    got = ah.layerwise_alignment(model.cuda(), x.double().cuda(), y.cuda(), outputs=outputs)
    torch.testing.assert_close(got.cka, expected.cka, rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(got.trace, expected.trace, rtol=1e-9, atol=1e-12)
    # In fp32 the masks of a rectifier may flip: compare at the same factors.
    for kernel in ah.tangent_kernels(model.float(), x.cuda(), outputs=outputs).values():
        on_cpu = ah.LayerFactors(
            kernel.factors[0].forward.cpu().double(), kernel.factors[0].backward.cpu().double(), kernel.factors[0].bias
        )
        same = ah.TangentKernel(on_cpu, kernel.outputs)
        assert ah.cka(kernel, y) == pytest.approx(ah.cka(same, y), rel=1e-5, abs=1e-9, nan_ok=True)


def test_same_bits_in_ten_runs():
    forward, backward = factors(500, 1, 10, 30, 256)
    means = torch.randn(500, 10, dtype=torch.float64, device="cuda")
    for precision in PRECISIONS:
        first = square(forward, backward, means, precision)
        assert all(torch.equal(square(forward, backward, means, precision), first) for _ in range(10))


def test_nothing_waits_for_the_device():
    forward, backward = factors(200, 1, 5, 30, 60)
    v = torch.randn(200, 5, 1, dtype=torch.float64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.tangent_moments(one_layer(forward, backward, 1.0), v - v.mean(), "highest")
        ops.tangent_moments(one_layer(forward, backward, 1.0), v - v.mean(), "highest", per_output=True)
        ops.tangent_gram(one_layer(forward, backward, 1.0), "highest")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_streams():
    forward, backward = factors(400, 1, 10, 30, 256)
    means = torch.zeros(400, 10, dtype=torch.float64, device="cuda")
    expected = square(forward, backward, means)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        doubled = backward * 2  # on this stream, late
        got = square(forward, doubled, means)
    torch.cuda.current_stream().wait_stream(stream)
    assert float(got) == pytest.approx(16 * float(expected), rel=1e-12)


def test_graph_capture():
    forward, backward = factors(300, 1, 10, 30, 256)
    means = torch.zeros(300, 10, dtype=torch.float64, device="cuda")
    square(forward, backward, means)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = square(forward, backward, means)
    backward.mul_(3.0)
    graph.replay()
    assert torch.equal(got, square(forward, backward, means))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_devices_other_than_the_current_one():
    forward, backward = (factor.to("cuda:1") for factor in factors(100, 1, 5, 30, 60))
    means = torch.zeros(100, 5, dtype=torch.float64, device="cuda:1")
    got = square(forward, backward, means)
    assert got.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    assert float(got) == pytest.approx(float(square(forward.cpu(), backward.cpu(), means.cpu())), rel=1e-5)


def test_compile():
    forward, backward = factors(100, 1, 5, 30, 60)
    means = torch.zeros(100, 5, dtype=torch.float64, device="cuda")
    compiled = torch.compile(lambda g: square(forward, g * 2, means).sqrt(), fullgraph=True)
    torch.testing.assert_close(compiled(backward), square(forward, backward * 2, means).sqrt())


def test_more_than_2_31_elements():
    n, o, m = 54_000, 10, 4096
    backward = torch.zeros(n, 1, o, m, dtype=torch.bfloat16, device="cuda")
    kept = torch.arange(0, n, 1350, device="cuda")
    backward[kept] = torch.randn(len(kept), 1, o, m, device="cuda").bfloat16()
    forward = torch.randn(n, 1, 8, device="cuda").bfloat16()
    zeros = torch.zeros(n, o, dtype=torch.float64, device="cuda")
    got = square(forward, backward, zeros, "medium")
    few = square(forward[kept], backward[kept], zeros[kept], "medium")
    assert float(got) == pytest.approx(float(few), rel=1e-6)


def test_memory_beyond_the_factors_does_not_grow_with_the_square():
    from ahkernels.ops.cuda.panels import PANEL_BYTES

    n, o, m = 8000, 10, 64
    forward, backward = factors(n, 1, o, 16, m)
    means = torch.zeros(n, o, dtype=torch.float64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    square(forward, backward, means)
    torch.cuda.synchronize()
    packed = 3 * 2 * n * o * m
    assert torch.cuda.max_memory_allocated() - before <= packed + 2 * PANEL_BYTES


def test_tracker_leaves_training_as_it_was():
    def train(tracked: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = networks.mlp(3, 32, 6, 3, bias=True).cuda()
        x, y = torch.randn(64, 6, device="cuda"), torch.randint(0, 3, (64,), device="cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        tracker = ah.AlignmentTracker(model, x, y)
        for step in range(20):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if tracked and step % 5 == 0:
                tracker.update(step, loss=loss.item())
        return [parameter.detach().clone() for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))
