"""Alignment on the whole training set, beside small probes."""
