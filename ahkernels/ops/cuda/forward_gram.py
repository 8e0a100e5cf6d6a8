"""The forward Gram P of a layer, which is tiny beside K and torch's own: its dtype, and its panels of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahkernels.ops.batch import Layer
from ahkernels.precision import products_are_in_float32

# A sum of so many products in fp32 keeps the digits of two bf16 parts: see `gram_dtype`.
LONGEST_FLOAT32_SUM = 1 << 14


def gram_dtype(layer: Layer, precision: str) -> torch.dtype:
    """What the forward Gram P is computed in. An error of P is an error of every entry of K.

    A product of d fp32 numbers is off by about sqrt(d) 2^-24 of the norms of its two rows, and by d 2^-24 at most.
    "medium" rounds the backward factor to 2^-9, beside which that does not count, nor 2^-11 where torch may multiply
    in TF32. "high" keeps 2^-17, which fp32 keeps up to d = 2^14, and TF32 does not. "highest" asks for fp32's own
    2^-24, and leaves it to the backward factor alone.
    """
    if precision == "medium":
        return torch.float32
    keeps = layer.forward.shape[2] <= LONGEST_FLOAT32_SUM and products_are_in_float32(layer.forward.device)
    return torch.float32 if precision == "high" and keeps else torch.float64


@dataclass(frozen=True)
class ScaledForward:
    """The forward factor of a layer times a power of two.

    Attributes:
        factor: Scaled [s, n, d], in the dtype that its Gram is computed in.
        bias: b, scaled as the Gram is, a scalar of that dtype on the device.
        scale: What the Gram of one of several layers is multiplied by beyond that: a power of two, no more than 1.
    """

    factor: Tensor
    bias: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, layer: Layer, precision: str, forward_scale: Tensor, scale: Tensor | None) -> ScaledForward:
        """Scales the factor of a layer."""
        dtype = gram_dtype(layer, precision)
        factor = layer.forward.transpose(0, 1).to(dtype) * forward_scale.to(dtype)
        bias = layer.bias * forward_scale**2
        if scale is None:
            return cls(factor, bias.to(dtype), None)
        return cls(factor, (bias * scale).to(dtype), scale.to(dtype))

    def gram(self, rows: slice) -> Tensor:
        """P between the samples in rows and those from there on, float32 [s * s, rows, n - rows.start].

        One product of matrices: a batched one over pairs of positions would copy both operands for each pair.
        """
        a, others = self.factor[:, rows], self.factor[:, rows.start :]
        a = a if self.scale is None else a * self.scale
        s, c, count = *a.shape[:2], others.shape[1]
        # A vector of biases is added within the product, unlike a scalar.
        product = torch.addmm(self.bias.expand(s * count).contiguous(), a.flatten(0, 1), others.flatten(0, 1).T)
        by_positions = product.view(s, c, s, count).transpose(1, 2)
        return by_positions.to(torch.float32, memory_format=torch.contiguous_format).contiguous().flatten(0, 1)
