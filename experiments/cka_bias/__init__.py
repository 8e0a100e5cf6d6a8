"""Alignments of few samples: their bias, and what is left of it once they are debiased."""
