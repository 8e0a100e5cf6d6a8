"""How alike the tangent kernels of a network's layers are."""
