"""Centering per output beside NNGeometry's: `python -m benchmarks.centering_witness`."""
