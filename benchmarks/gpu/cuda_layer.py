"""Claim tested: on a GPU, a layer's alignment from its factors runs at the rate of the tensor cores, without K.

10 outputs, n = 1000, 6000 and 60,000 at width 256 (K of the last would take 1.3 TiB), and n = 6000 at width 1024: the
fused centered moments and the whole alignment at each precision. Beside them stand plain torch at the same precision,
by panels of rows right of the diagonal, eager and compiled, at several block sizes, and the machine's ceilings: a copy
and products of 8192^3 numbers in bf16, TF32, fp32 and fp64. The floor is the useful flops (half of the square, multiply
and add) times the bf16 products that a precision takes (1, 3 or 6), over the best bf16 rate. Last comes K in memory.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

import ahkernels as ah
from ahkernels.factors import LayerFactors
from benchmarks.common import device as on_device
from benchmarks.gpu import script
from benchmarks.gpu.row_file import RowFile

OUTPUTS = 10
PRODUCTS = {"highest": 6, "high": 3, "medium": 1}  # of bf16 numbers
BLOCKS = (32, 128, 512)
Panel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def factors(n: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a [n, 1, width], g [n, 1, o, width] as of a ReLU network on clustered inputs, and class indices."""
    generator = torch.Generator(device).manual_seed(0)
    y = torch.randint(OUTPUTS, (n,), generator=generator, device=device)
    centers = torch.randn(OUTPUTS, width, generator=generator, device=device)
    a = (centers[y] + torch.randn(n, width, generator=generator, device=device)).relu_()
    weight = torch.randn(OUTPUTS, width, generator=generator, device=device)
    mask = centers[y] + torch.randn(n, width, generator=generator, device=device) > 0
    return a[:, None], (weight * mask[:, None])[:, None], y


def eager_panel(
    q: torch.Tensor, p: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of a centered panel and of its first block; overwrites q [b, o, n', o]; p [b, n']."""
    q.mul_(p[:, None, :, None]).sub_(rows[:, :, None, None]).sub_(columns)
    squares = torch.linalg.vector_norm(q.flatten(2), dim=2).double().square().sum()
    return squares, torch.linalg.vector_norm(q[:, :, : len(q)].flatten(2), dim=2).double().square().sum()


def _fused_panel(
    q: torch.Tensor, p: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    squares = (q * p[:, None, :, None] - rows[:, :, None, None] - columns).square().sum(3)  # [b, o, n']
    return squares.sum(dtype=torch.float64), squares[:, :, : len(q)].sum(dtype=torch.float64)


@cache
def _compiled() -> Panel:
    """Compiled when it is first needed: to import the compiler alone takes seconds."""
    return torch.compile(_fused_panel, dynamic=True)


def compiled_panel(
    q: torch.Tensor, p: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of `eager_panel` by a compiled function."""
    return _compiled()(q, p, rows, columns)


def bar(
    a: torch.Tensor, g: torch.Tensor, means: torch.Tensor, precision: str, panel: Panel, block: int
) -> torch.Tensor:
    """||C K C||_F^2 in plain torch by panels of `block` samples right of the diagonal; nothing waits for the device."""
    if precision == "medium":
        a, g = a.bfloat16(), g.bfloat16()
    n, _, o, width = g.shape
    a, g = a[:, 0], g.reshape(n * o, width)
    columns = means.float()
    rows = (means - means.mean()).float()
    total = means.new_zeros(())
    for begin in range(0, n, block):
        end = min(begin + block, n)
        p = (a[begin:end] @ a[begin:].T).float()
        q = (g[begin * o : end * o] @ g[begin * o :].T).float().view(end - begin, o, n - begin, o)
        squares, first = panel(q, p, rows[begin:end], columns[begin:])
        total += 2 * squares - first
    return total


def plain_gram(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """K in plain torch, in place."""
    n, _, o, width = g.shape
    g = g.reshape(n * o, width)
    return (g @ g.T).view(n, o, n, o).mul_((a[:, 0] @ a[:, 0].T)[:, None, :, None]).view(n * o, n * o)


def with_matmul_precision(precision: str, job: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "high" else "highest")
        try:
            return job()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


class Layer:
    """One problem, with everything that is measured of it."""

    def __init__(self, n: int, width: int, device: str) -> None:
        self.n, self.width, self.device = n, width, device
        self.a, self.g, self.y = factors(n, width, device)
        self.means = self.kernel("highest").row_means()
        self.batch = self.kernel("highest").batch

    def kernel(self, precision: str) -> ah.TangentKernel:
        return ah.TangentKernel(LayerFactors(self.a, self.g, bias=False), precision=precision)

    def fused(self, precision: str) -> torch.Tensor:
        return ah.ops.centered_inner_products(self.batch, [self.means], precision)

    def exact(self) -> float:
        """||C K C||_F^2 in float64."""
        return float(ah.ops.centered_inner_products(self.batch.double(), [self.means], "highest"))

    def plain(self, precision: str, panel: Panel, block: int) -> Callable[[], object]:
        return with_matmul_precision(precision, partial(bar, self.a, self.g, self.means, precision, panel, block))


def contenders(layer: Layer, precision: str, blocks: list[int]) -> dict[str, Callable[[], object]]:
    """Every way to ||C K C||_F^2, ours first, and our whole alignment."""
    found: dict[str, Callable[[], object]] = {
        "ours, moments": partial(layer.fused, precision),
        "ours, whole alignment": lambda: ah.cka(layer.kernel(precision), layer.y),
    }
    for name, panel in (("eager", eager_panel), ("compiled", compiled_panel)):
        found |= {f"plain torch, {name}, blocks of {b}": layer.plain(precision, panel, b) for b in blocks}
    return found


def measure(layer: Layer, best: dict[str, float], repeats: int, rows: RowFile, blocks: list[int]) -> None:
    """A row for each contender and precision; errors are against float64, for large n against "highest"."""
    exact = layer.exact() if layer.n <= 10_000 else float(layer.fused("highest"))
    flops = float(layer.n * OUTPUTS) ** 2 * layer.width
    jobs = {precision: contenders(layer, precision, blocks) for precision in PRODUCTS}
    ours: dict[str, float] = {}
    for contender in jobs["highest"]:
        for precision, products in PRODUCTS.items():
            value, timing, peak = on_device.measured(jobs[precision][contender], layer.device, repeats)
            seconds = timing["median_s"]
            ours.setdefault(precision, seconds)
            error = None if "alignment" in contender else abs(float(value) / exact - 1)
            floor = flops * products / best["bf16"]
            rows.add(
                f"n = {layer.n}, N = {layer.width}, {precision}, {contender}: {1e3 * seconds:.3f} ms, "
                f"{seconds / ours[precision]:.2f} times ours, floor {1e3 * floor:.3f} ms, "
                f"{flops / seconds / 1e12:.1f} useful Tflop/s, "
                + (f"A = {value:.6f}" if error is None else f"error {error:.1e}"),
                kind="layer",
                n=layer.n,
                width=layer.width,
                precision=precision,
                contender=contender,
                timing=timing,
                floor_s=floor,
                useful_flops_per_s=flops / seconds,
                alignment=float(value) if error is None else None,
                relative_error=error,
                peak_bytes=peak,
            )
        if contender == "ours, moments" and layer.n <= 10_000:
            for precision in PRODUCTS:
                same = len({float(layer.fused(precision)) for _ in range(10)}) == 1
                rows.add(f"  same bits in 10 runs: {same}", kind="bits", n=layer.n, precision=precision, same=same)


def measure_gram(layer: Layer, repeats: int, rows: RowFile) -> None:
    """K in memory by both, a row for each."""
    jobs = {
        "ours": partial(ah.ops.tangent_gram, layer.batch, "highest"),
        "plain torch": with_matmul_precision("highest", partial(plain_gram, layer.a, layer.g)),
    }
    for contender, job in jobs.items():
        _, timing, peak = on_device.measured(job, layer.device, repeats)
        rows.add(
            f"n = {layer.n}, N = {layer.width}, K in memory, {contender}: {1e3 * timing['median_s']:.2f} ms, "
            f"peak {peak} bytes",
            kind="gram",
            n=layer.n,
            width=layer.width,
            contender=contender,
            timing=timing,
            peak_bytes=peak,
        )


def main() -> None:
    args = script.arguments("cuda_layer", __doc__, 5)
    rows = script.row_file(args)
    best = {}
    for name, rate in on_device.ceilings(args.device, 256 if args.quick else 8192):
        best[name] = rate
        rows.add(f"{name}: {rate / 1e12:.3f}e12 per second", kind="ceiling", name=name, per_second=rate)
    sizes = [(30, 16), (64, 16), (100, 16)] if args.quick else [(1000, 256), (6000, 256), (60_000, 256), (6000, 1024)]
    for n, width in sizes:
        blocks = [b for b in BLOCKS if b <= n]
        if args.quick or n > 10_000:
            blocks = blocks[-1:] or [n]
        measure(Layer(n, width, args.device), best, args.repeats, rows, blocks)
    measure_gram(Layer(*sizes[1], args.device), 3, rows)


if __name__ == "__main__":
    main()
