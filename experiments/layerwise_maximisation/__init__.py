"""Alignment of networks that are trained layer by layer towards good features."""
