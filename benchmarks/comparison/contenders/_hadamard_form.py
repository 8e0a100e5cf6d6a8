"""Variants of the Hadamard form by hand, and the tasks that have no use for them."""

from __future__ import annotations

from benchmarks.comparison.tasks import Task


def unable(task: Task, variant: str) -> str | None:
    """Why a variant cannot do a task, or None."""
    if task.network != "mlp":
        return "written for dense layers alone"
    if "panels" in variant and task.quantity != "alignment":
        return "all of K is asked for"
    if variant == "products from factors" and task.quantity != "top_eigenvalue":
        return "for eigenvalues"
    return None
