"""The least work of each task, the same for every contender."""

from benchmarks.common import floor
from benchmarks.common.ceilings import Work
from benchmarks.comparison import problem
from benchmarks.comparison.tasks import Task


def work_of(task: Task) -> Work:
    """Passes, half of the Grams, and the kernels that are asked for written once; of an eigenvalue, one product."""
    n, o, rows = task.n, task.outputs, task.n * task.outputs
    if task.network != "mlp":
        given = problem.make(task.on("cpu"))
        return floor.image_network(given.torch_model(), given.tensors()[0], o)
    one_layer = task.quantity in ("layer_kernel", "top_eigenvalue")
    asked = task.shapes[task.layer : task.layer + 1] if one_layer else task.shapes
    flops = floor.passes(task.shapes, n, o, task.layer if one_layer else 0)
    moved = floor.weights(task.shapes) + floor.factors(asked, n, o)
    if task.quantity == "top_eigenvalue":
        return Work(flops + floor.product(asked[0], n, o), moved)
    written = {"layer_kernel": 1, "layer_kernels": len(asked), "network_kernel": 1, "alignment": 0}[task.quantity]
    return Work(flops + floor.grams(asked, n, o), moved + 4 * written * rows**2)
