"""The best that the machine can do: the GEMM rates and the copy bandwidth that floors are stated against.

A rate is the best over shapes, libraries (MKL and oneDNN, both inside torch) and runs, so that a share of it is never
flattered by a slow GEMM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.common.timing import Job, interleaved

Shape = tuple[int, int, int]  # [m, k] x [k, n]
SQUARE: Shape = (4096, 4096, 4096)
PANELS: tuple[Shape, ...] = ((1000, 256, 1000), (2000, 256, 10000))  # of backward Grams, at n = 100 and n = 1000
COPIED = 2**29  # bytes, more than any cache holds


@dataclass(frozen=True)
class Work:
    """The least that a job has to do: floating-point operations in GEMMs, and bytes through memory."""

    flops: float
    bytes: float


@dataclass
class Ceilings:
    """Best measured rates; `gemm` maps "fp32 oneDNN 4096x4096x4096" to flop/s."""

    gemm: dict[str, float]
    bandwidth: float
    jobs: dict[str, tuple[Job, float]] = field(default_factory=dict, repr=False)

    def rate(self, dtype: str = "fp32") -> float:
        """Best flop/s of any GEMM in this type."""
        return max(rate for name, rate in self.gemm.items() if name.startswith(dtype))

    def confirm(self, dtype: str = "fp32") -> None:
        """Measures the best GEMM again, at the end of a run, and keeps the better figure."""
        name = max((key for key in self.gemm if key.startswith(dtype)), key=lambda key: self.gemm[key])
        job, flops = self.jobs[name]
        self.gemm[name] = max(self.gemm[name], flops / interleaved({name: job})[name].min)

    def floor(self, work: Work) -> tuple[float, float]:
        """Seconds for the flops at the best fp32 rate, and for the bytes at the copy bandwidth."""
        return work.flops / self.rate(), work.bytes / self.bandwidth

    def to_dict(self) -> dict[str, object]:
        return {
            "gemm_flops_per_s": self.gemm,
            "best_flops_per_s": {t: self.rate(t) for t in ("fp32", "bf16", "fp64")},
            "copy_bytes_per_s": self.bandwidth,
        }


def measure(shapes: Sequence[Shape] = (), square: Shape = SQUARE, repeats: int = 3, copied: int = COPIED) -> Ceilings:
    """Times every library on the benchmark's own shapes and on a large square; fp64 only needs the square."""
    wanted = [(dtype, shape) for dtype in (torch.float32, torch.bfloat16) for shape in (*shapes, square)]
    rates, jobs = {}, {}
    for dtype, shape in [*wanted, (torch.float64, square)]:
        kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64"}[dtype]
        flops = 2.0 * shape[0] * shape[1] * shape[2]
        named = {f"{kind} {library} {'x'.join(map(str, shape))}": job for library, job in _gemms(dtype, shape).items()}
        for name, timing in interleaved(named, repeats).items():
            rates[name] = flops / timing.min
            jobs[name] = (named[name], flops)
    best = max((name for name in rates if name.startswith("fp32")), key=lambda name: rates[name])
    return Ceilings(rates, copy_bandwidth(copied), {best: jobs[best]})


def linear_onednn(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """a w^T by oneDNN; torch.mm takes MKL for the same product."""
    return torch.ops.mkldnn._linear_pointwise(a, w, None, "none", [], "")


def copy_bandwidth(size: int) -> float:
    """Bytes per second, read and written, of a copy of `size` bytes."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    return 2 * size / interleaved({"copy": lambda: target.copy_(source)}, 5)["copy"].min


def _gemms(dtype: torch.dtype, shape: Shape) -> dict[str, Callable[[], torch.Tensor]]:
    """The same product a w^T by each library in torch."""
    m, k, n = shape
    a, w, out = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.empty(m, n, dtype=dtype)
    jobs = {"torch.mm": lambda: torch.mm(a, w.T, out=out)}
    if _in_onednn(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(w, m)
        jobs["oneDNN"] = lambda: linear_onednn(a, w)
        jobs["oneDNN prepacked"] = lambda: linear_onednn(a, packed)
    return jobs


def _in_onednn(dtype: torch.dtype) -> bool:
    """Whether torch lets oneDNN multiply numbers of this type: bf16 not on a processor without AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
