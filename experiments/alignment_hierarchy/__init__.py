"""Which layers' tangent kernels align with the labels, along training."""
