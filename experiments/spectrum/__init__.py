"""Eigenvalues and stable ranks of tangent kernels and of the Fisher information."""
