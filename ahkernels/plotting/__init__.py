"""Pictures of measurements, drawn with matplotlib, which is imported when one is asked for and not before."""

from ahkernels.plotting.animation import animate_history
from ahkernels.plotting.history import plot_history
from ahkernels.plotting.report import plot_report
from ahkernels.plotting.similarity import plot_similarity
from ahkernels.plotting.spectrum import plot_spectrum

__all__ = ["animate_history", "plot_history", "plot_report", "plot_similarity", "plot_spectrum"]
