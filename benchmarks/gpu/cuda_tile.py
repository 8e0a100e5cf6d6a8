"""Claim tested: the CUDA kernels load, run, and give the numbers of float64, one tile of 128 x 128 at each precision.

The first thing to know of a GPU that has not run them yet. A layer with one position and a layer with two, which is a
sum of products, have kernels of their own: by wgmma on Hopper, by mma.sync elsewhere. Ends with status 1 where an error
is above its bound.
"""

import sys

import torch

import ahkernels as ah
from ahkernels.ops import KernelBatch
from ahkernels.ops.plain import tangent_gram
from benchmarks.gpu import script

N, OUTPUTS, NUMBERS = 16, 8, 200  # 128 rows of K; numbers along k that fill no slice
BOUNDS = {"highest": 1e-6, "high": 3e-5, "medium": 1e-2}  # of the norm of K


def main() -> int:
    args = script.arguments("cuda_tile", __doc__, 1)
    rows = script.row_file(args)
    print(rows.record["build"], flush=True)
    wrong = args.device == "cuda" and ah.build_info()["implementations"]["cuda"] != "kernels"
    if wrong:
        rows.add("no CUDA kernels are in use", precision=None, reason=ah.build_info()["cuda"])
    torch.manual_seed(0)
    for positions in (1, 2):
        a, g = torch.randn(N, positions, 30), torch.randn(N, positions, OUTPUTS, NUMBERS)
        batch = KernelBatch([a], [g], [1.0], [False], [1])
        k = tangent_gram(batch.double(), "highest")
        means = k.mean(1).view(N, OUTPUTS)
        centered = k - means.flatten()[:, None] - means.flatten() + k.mean()
        means = means.to(args.device)
        batch = batch._replace(forward=[a.to(args.device)], backward=[g.to(args.device)])
        for precision, bound in BOUNDS.items():
            gram = ah.ops.tangent_gram(batch, precision).cpu()
            square = ah.ops.centered_inner_products(batch, [means], precision).cpu()
            gram_error = float((gram - k).norm() / k.norm())
            square_error = float((square - centered.square().sum()).abs() / k.norm() ** 2)
            right = gram_error <= bound and square_error <= bound  # False for nan
            wrong |= not right
            rows.add(
                f"positions {positions}, {precision}: K {gram_error:.1e}, ||C K C||^2 {square_error:.1e} of ||K||^2 "
                f"(bound {bound:.0e}): {'right' if right else 'WRONG'}",
                positions=positions,
                precision=precision,
                gram_error=gram_error,
                square_error=square_error,
                bound=bound,
                right=right,
            )
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
