"""What the tangent kernel of a single layer is worth in kernel regression."""
