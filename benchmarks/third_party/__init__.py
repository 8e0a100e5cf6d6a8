"""Networks as the libraries make them that people use, measured without a wrapper, and held against autograd."""
