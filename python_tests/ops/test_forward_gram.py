"""The forward Gram that tiles are multiplied by on a CUDA device: its digits, and in how many passes it is made."""

from __future__ import annotations

import pytest
import torch
from reference import factors
from torch.utils._python_dispatch import TorchDispatchMode

from ahkernels.ops.batch import Layer
from ahkernels.ops.cuda import forward_gram, panels, tiles
from ahkernels.ops.cuda.forward_gram import gram_dtype
from ahkernels.ops.cuda.scaled_kernel import ScaledKernel
from ahkernels.ops.scaling import scales_of_layers

DIGITS = {"highest": 2.0**-24, "high": 2.0**-17, "medium": 2.0**-9}


@pytest.fixture(autouse=True)
def no_parts(monkeypatch):
    for name in ("pack_parts", "pack_slices"):
        monkeypatch.setattr(tiles, name, lambda *_: torch.empty(0))


def layer(n: int, s: int, d: int, bias: float = 1.0) -> Layer:
    return Layer(*factors(n, s, 2, d, 3), bias, False)


@pytest.mark.parametrize("precision", DIGITS)
@pytest.mark.parametrize(("s", "d", "bias"), [(1, 500, 1.0), (1, 3, 0.0), (3, 40, 1.0), (2, 0, 1.0)])
def test_digits(precision, s, d, bias):
    one, rows = layer(20, s, d, bias), slice(5, 12)
    p = ScaledKernel.of([one], precision).forward_gram(rows)
    assert p.shape == (s * s, 7, 15) and p.is_contiguous()
    p = p.view(s, s, 7, 15).double() / scales_of_layers([one]).forward_gram
    a = one.forward.double()
    norms = (a.square().sum(2) + bias).sqrt()
    error = (p - torch.einsum("xsd,ytd->stxy", a[rows], a[rows.start :]) - bias).abs()
    bound = torch.einsum("xs,yt->stxy", norms[rows], norms[rows.start :])
    assert (error <= DIGITS[precision] * bound).all()


def test_dtype(monkeypatch):
    short, long = layer(2, 1, 5), layer(2, 1, forward_gram.LONGEST_FLOAT32_SUM + 1)
    assert [gram_dtype(short, precision) for precision in DIGITS] == [
        torch.float64,
        torch.float32,
        torch.float32,
    ]
    assert [gram_dtype(long, precision) for precision in DIGITS] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]
    monkeypatch.setattr(forward_gram, "products_are_in_float32", lambda _: False)
    assert [gram_dtype(short, precision) for precision in DIGITS] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


class Written(TorchDispatchMode):
    """Counts the bytes of what is written of at least so many numbers, which views are not."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.bytes = numbers, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        alias = function._schema.returns[0].alias_info
        if result.numel() >= self.numbers and (alias is None or alias.is_write):
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("precision", DIGITS)
@pytest.mark.parametrize("s", [1, 2])
def test_bytes_written(precision, s):
    """Each number once, and again only where the tiles take another dtype or order: what panels of samples count."""
    one = layer(64, s, 3)
    kernel = ScaledKernel.of([one], precision)
    with Written(s * s * 64 * 64) as written:
        kernel.forward_gram(slice(0, 64))
    assert written.bytes == 64 * panels.gram_bytes_of([one], precision)
