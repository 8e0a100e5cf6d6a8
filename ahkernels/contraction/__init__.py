"""The order in which a squared norm is contracted: by tiles of K, by outputs first, or by parameters first."""

from ahkernels.contraction.order import Order, order_of
from ahkernels.contraction.squares import squared_norms

__all__ = ["Order", "order_of", "squared_norms"]
