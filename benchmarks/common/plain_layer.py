"""The bar: the alignment from factors in plain torch, as well as a good user can write it.

K = P o Q with P = A A^T [n, n] and Q = G G^T [on, on]. Everything thin is done by small GEMMs. The variants differ in
how they form ||C K C||_F^2: with K in memory, by panels of rows, or by panels right of the diagonal that count twice.
Rows are ordered (class, sample) in a block, so that P is broadcast along contiguous memory.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

from benchmarks.common.ceilings import linear_onednn

Alignment = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]  # of a [n, N], g [n, o, M], y [n, o]
Panel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def thin_products(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Row means of K [n, o], and <y~, K y~> / ||y~||^2, without K; a [n, N], g [n, o, M], y [n, o]."""
    n, o, _ = g.shape
    means = torch.einsum("xoi,xi->xo", g, a @ (g.sum(1).T @ a / (n * o)).T)
    centered = y - y.mean()
    moment = torch.einsum("xo,xoi->xi", centered, g).T @ a
    return means, float(moment.double().square().sum() / centered.double().square().sum())


def materialised(a: torch.Tensor, g: torch.Tensor, y: torch.Tensor) -> float:
    """Alignment with K in memory, every pass in place."""
    means, numerator = thin_products(a, g, y)
    n, o, width = g.shape
    g = g.transpose(0, 1).reshape(o * n, width)
    k = (g @ g.T).view(o, n, o, n).mul_((a @ a.T)[:, None, :]).view(o * n, o * n)
    rows = means.T.reshape(-1)
    k.sub_((rows - means.double().mean().to(rows))[:, None]).sub_(rows)
    return numerator / float(torch.linalg.vector_norm(k, dim=1).double().square().sum()) ** 0.5


def dense(a: torch.Tensor, g: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """K [n*o, n*o], row x*o + i for sample x and output i."""
    n, o, width = g.shape
    rows = g.reshape(n * o, width)
    k = torch.mm(rows, rows.T, out=out)
    k.view(n, o, n, o).mul_((a @ a.T)[:, None, :, None])
    return k


def product(a: torch.Tensor, g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """K v [n*o] from thin products, without K; v [n*o]."""
    moment = torch.einsum("xo,xoi->xi", v.view(g.shape[:2]), g).T @ a
    return torch.einsum("xoi,xi->xo", g, a @ moment.T).reshape(-1)


def blocked(
    a: torch.Tensor,
    g: torch.Tensor,
    y: torch.Tensor,
    block: int,
    symmetric: bool = True,
    panel: Panel | None = None,
    onednn: bool = False,
) -> float:
    """Alignment by panels of `block` samples; `symmetric` skips everything left of the diagonal."""
    means, numerator = thin_products(a, g, y)
    total = blocked_square(a, g, means, block, symmetric, panel, onednn)
    return numerator / total**0.5


def blocked_square(
    a: torch.Tensor,
    g: torch.Tensor,
    means: torch.Tensor,
    block: int,
    symmetric: bool = True,
    panel: Panel | None = None,
    onednn: bool = False,
) -> float:
    """||C K C||_F^2; `block` divides n."""
    n, o, width = g.shape
    panel, count, side = panel or eager_panel, n // block, o * block
    p = (a @ a.T).view(count, block, count, 1, block)
    g = g.view(count, block, o, width).transpose(1, 2).reshape(count, side, width)
    columns = means.view(count, block, o).transpose(1, 2).contiguous()  # [count, o, block]
    rows = (columns - means.double().mean().to(means)).view(count, o, block, 1, 1, 1)
    buffer = g.new_empty(side * n * o)
    total = 0.0
    for i in range(count):
        left = i if symmetric else 0
        right = g[left:].view(-1, width)
        q = (
            linear_onednn(g[i], right)
            if onednn
            else torch.mm(g[i], right.T, out=buffer[: side * len(right)].view(side, -1))
        )
        whole, diagonal = panel(q.view(o, block, count - left, o, block), p[i, :, left:], rows[i], columns[left:])
        total += float(2 * whole - diagonal) if symmetric else float(whole)
    return total


def eager_panel(
    q: torch.Tensor, p: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of the centered panel and of its first block; overwrites q [o, b, k, o, b]; p [b, k, 1, b]."""
    squares = torch.linalg.vector_norm(q.mul_(p).sub_(rows).sub_(columns).flatten(2), dim=2).double().square()
    first = torch.linalg.vector_norm(q[:, :, 0], dim=(2, 3)).double().square()
    return squares.sum(), first.sum()


def _fused_panel(
    q: torch.Tensor, p: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    sums = (q * p - rows - columns).square().sum(-1)
    return sums.sum(dtype=torch.float64), sums[:, :, 0].sum(dtype=torch.float64)


@cache
def _compiled() -> Panel:
    """Compiled when it is first needed: to import the compiler alone takes seconds."""
    return torch.compile(_fused_panel, dynamic=True)


def compiled_panel(
    q: torch.Tensor, p: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of `eager_panel` by a compiled function."""
    return _compiled()(q, p, rows, columns)


def block_sizes(n: int, smallest: int = 16, largest: int = 256, most: int = 3) -> list[int]:
    """A spread of divisors of n worth trying."""
    divisors = [b for b in range(smallest, min(n, largest) + 1) if n % b == 0] or [n]
    step = max(1, -(-len(divisors) // most))
    return divisors[step // 2 :: step]


def families(n: int) -> dict[str, dict[str, Alignment]]:
    """Every variant of the bar for n samples, grouped by method."""
    sizes = block_sizes(n)

    def swept(name: str, **options: object) -> dict[str, Alignment]:
        return {f"{name}, blocks of {b}": partial(blocked, block=b, **options) for b in sizes}

    return {
        "materialised": {"materialised": materialised},
        "chunked": swept("chunked", symmetric=False),
        "chunked, compiled": swept("chunked, compiled", symmetric=False, panel=compiled_panel),
        "symmetric": swept("symmetric") | swept("symmetric, oneDNN", onednn=True),
        "symmetric, compiled": swept("symmetric, compiled", panel=compiled_panel),
    }


def variants(n: int) -> dict[str, Alignment]:
    """Every variant of the bar for n samples, by name."""
    return {name: job for family in families(n).values() for name, job in family.items()}
