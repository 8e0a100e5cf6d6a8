"""Alignment by layer over learning rates, batch sizes and optimizers."""
