"""The order in which inner products are contracted: by tiles of K, by outputs first, or by parameters first."""

from ahkernels.contraction.best_order import inner_products
from ahkernels.contraction.order import Order, order_of

__all__ = ["Order", "inner_products", "order_of"]
