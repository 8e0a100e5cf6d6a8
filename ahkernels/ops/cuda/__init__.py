"""The ops on CUDA, from kernels for two things: a factor as a sum of bf16 parts, and all that is done tile by tile.

Everything else is torch's: the forward Gram, and kernels of float64 numbers and other near-constant ones than those of
`ahkernels.ops.cuda.deviation_kernel`, which take float64 products (see `ahkernels.ops.plain`).
"""

from ahkernels.ops.cuda.gram import tangent_gram
from ahkernels.ops.cuda.inner_products import centered_inner_products, per_output_inner_products
from ahkernels.ops.cuda.moments import tangent_moments

__all__ = ["centered_inner_products", "per_output_inner_products", "tangent_gram", "tangent_moments"]
