"""neural-tangents, by each of its implementations of the empirical kernel.

Weights are [in, out] and images [n, height, width, channels], the layout of its own layers, in which structured
derivatives recognise products and convolutions; vmap_axes=0 says that samples are independent, and x2=None that K is
symmetric. It returns the sum over the parameters it is given, so that layers are calls with one layer's parameters
each, as many in one jax.jit as fit in memory: XLA shares the passes through the network that they have in common.
Where one does not fit, K comes by pairs of blocks of samples on and below the diagonal (nt.batch would form both
sides of it), and an alignment is summed over these, with row means from empirical_ntk_vp_fn. That function is the
fourth variant, with SciPy's Lanczos iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.comparison.grouping import BUDGET, groups
from benchmarks.comparison.problem import Problem
from benchmarks.comparison.tasks import EIGENVALUE_TOLERANCE, Task

if TYPE_CHECKING:
    import jax

    Network = Callable[[list[Any], jax.Array], jax.Array]  # parameters of each layer, x -> [n, o]

TITLE = "neural-tangents 0.6.5"
REQUIREMENTS = (
    "neural-tangents==0.6.5",
    "jax==0.4.25",
    "jaxlib==0.4.25",
    "numpy==1.26.4",
    "scipy==1.12.0",
    "ml-dtypes==0.3.2",
    "tf2jax==0.3.6",
    "tensorflow==2.17.1",
)
VARIANTS = ("structured derivatives", "Jacobian contraction", "NTK-vector products", "empirical_ntk_vp_fn")


def unable(task: Task, variant: str) -> str | None:
    if task.device != "cpu":
        return "jax 0.4.25, which it needs, is installed for CPUs alone"
    if variant == "empirical_ntk_vp_fn" and task.quantity != "top_eigenvalue":
        return "for eigenvalues"
    return None


def prepare(problem: Problem, variant: str) -> Callable[[], np.ndarray]:
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    network, parameters, x = (residual_network if problem.task.network == "resnet18" else mlp)(problem)
    quantity, layers = problem.task.quantity, range(len(parameters))
    if variant == "empirical_ntk_vp_fn":
        return largest_eigenvalue(network, parameters, x, problem)
    if quantity == "network_kernel":
        return kernels(lambda whole, x: network(whole[0], x), [parameters], x, [0], problem, variant, summed=True)
    if quantity == "alignment":
        return alignments(network, parameters, x, problem, variant)
    if quantity == "layer_kernels":
        return kernels(network, parameters, x, layers, problem, variant)
    kernel = kernels(network, parameters, x, [problem.layer], problem, variant, summed=True)
    if quantity == "layer_kernel":
        return kernel
    return lambda: lanczos(kernel())


def mlp(problem: Problem) -> tuple[Network, list[Any], jax.Array]:
    import jax
    import jax.numpy as jnp

    def network(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for weight in weights[:-1]:
            x = jax.nn.relu(x @ weight)
        return x @ weights[-1]

    return network, [jnp.asarray(weight.T) for weight in problem.weights], jnp.asarray(problem.x)


def residual_network(problem: Problem) -> tuple[Network, list[Any], jax.Array]:
    """ResNet18 in eval mode; a dictionary of arrays for each module with parameters."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    layouts = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,), 0: ()}
    modules: dict[str, dict[str, jax.Array]] = {}
    for path, array in problem.state.items():
        name, _, kind = path.rpartition(".")
        modules.setdefault(name, {})[kind] = jnp.asarray(array.transpose(layouts[array.ndim]))
    names = list(modules)
    parameters = [{kind: own[kind] for kind in ("weight", "bias") if kind in own} for own in modules.values()]

    def network(parameters: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
        own = dict(zip(names, parameters, strict=True))

        def convolution(name: str, x: jax.Array, stride: int = 1) -> jax.Array:
            weight = own[name]["weight"]
            padding = [(size // 2, size // 2) for size in weight.shape[:2]]
            layout = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(x, weight, (stride, stride), padding, dimension_numbers=layout)

        def norm(name: str, x: jax.Array) -> jax.Array:
            scale = lax.rsqrt(modules[name]["running_var"] + 1e-5)
            return (x - modules[name]["running_mean"]) * scale * own[name]["weight"] + own[name]["bias"]

        h = jax.nn.relu(norm("1", convolution("0", x)))
        for block in (name.removesuffix(".conv1") for name in names if name.endswith(".conv1")):
            narrows = f"{block}.shortcut.0" in own
            inner = convolution(f"{block}.conv1", h, 2 if narrows else 1)
            inner = norm(f"{block}.bn2", convolution(f"{block}.conv2", jax.nn.relu(norm(f"{block}.bn1", inner))))
            if narrows:
                h = norm(f"{block}.shortcut.1", convolution(f"{block}.shortcut.0", h, 2))
            h = jax.nn.relu(h + inner)
        return h.mean((1, 2)) @ own[names[-1]]["weight"] + own[names[-1]]["bias"]

    return network, parameters, jnp.asarray(problem.x.transpose(0, 2, 3, 1))


def kernels(
    network: Network,
    parameters: list[Any],
    x: jax.Array,
    layers: Sequence[int],
    problem: Problem,
    variant: str,
    summed: bool = False,
) -> Callable[[], np.ndarray]:
    """K of these layers [L, n*o, n*o], or of a single one [n*o, n*o] where `summed`."""
    n, o = problem.task.n, problem.task.outputs
    plans = [
        (group, block, pairs_of_blocks(network, parameters, x, group, variant, block))
        for group, block in plan(parameters, layers, problem, variant)
    ]

    def job() -> np.ndarray:
        out = np.empty((len(layers), n, o, n, o), np.float32)
        for group, block, pairs in plans:
            place = slice(group[0] - layers[0], group[-1] - layers[0] + 1)
            for i, j, found in pairs():
                rows, columns = slice(i, i + block), slice(j, j + block)
                for k, one in zip(out[place], found, strict=True):  # one is [rows, columns, o, o]
                    k[rows, :, columns] = np.asarray(one).transpose(0, 2, 1, 3)
                    if i != j:
                        k[columns, :, rows] = k[rows, :, columns].transpose(2, 3, 0, 1)
        return out.reshape(-1, n * o, n * o)[0] if summed else out.reshape(-1, n * o, n * o)

    return job


def alignments(
    network: Network, parameters: list[Any], x: jax.Array, problem: Problem, variant: str
) -> Callable[[], np.ndarray]:
    """Alignments of all layers; moments and centered squares are computed where K is, and summed outside in float64."""
    import jax.numpy as jnp

    target = problem.targets - problem.targets.mean()
    y = jnp.asarray(target)
    plans = []
    for group, block in plan(parameters, range(len(parameters)), problem, variant):
        if block == problem.task.n:
            plans.append(whole_moments(network, parameters, x, y, group, variant))
        else:
            plans.extend(blockwise_moments(network, parameters, x, y, layer, variant, block) for layer in group)

    def job() -> np.ndarray:
        moments, squares = zip(*(one for moments_of in plans for one in moments_of()), strict=True)
        return np.array(moments) / np.sqrt(squares) / np.sum(target.astype(np.float64) ** 2)

    return job


Moments = Callable[[], Iterator[tuple[float, float]]]  # <y~, K y~> and ||C K C||_F^2 of each layer


def whole_moments(
    network: Network, parameters: list[Any], x: jax.Array, y: jax.Array, group: list[int], variant: str
) -> Moments:
    """Moments from the kernels of all samples at once."""
    import jax.numpy as jnp

    def moments(parameters: list[Any], x: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        found = []
        for k in layer_kernels(network, group, variant)(parameters, x, None):
            means = k.mean((1, 3))
            products = jnp.einsum("xyij,yj->xi", k, y) * y
            found.append((products, centered_squares(k, means, means, means.mean())))
        return found

    run = compiled(moments, parameters, x)
    return lambda: ((total(one), total(other)) for one, other in run(parameters, x))


def blockwise_moments(
    network: Network, parameters: list[Any], x: jax.Array, y: jax.Array, layer: int, variant: str, block: int
) -> Moments:
    """Moments by pairs of blocks of samples, where pairs off the diagonal count twice."""
    import jax.numpy as jnp
    import neural_tangents as nt

    def product(parameters: list[Any], x: jax.Array, v: jax.Array) -> jax.Array:
        return nt.empirical_ntk_vp_fn(of_layer(network, parameters, layer), x, None, parameters[layer])(v)

    times = compiled(product, parameters, x, y)
    square = compiled(centered_squares, jnp.zeros((block, block, *y.shape[1:] * 2)), y[:block], y[:block], y[0, 0])
    pairs = pairs_of_blocks(network, parameters, x, [layer], variant, block)

    def moments() -> Iterator[tuple[float, float]]:
        means = times(parameters, x, jnp.ones_like(y)) / y.size
        mean, squares = means.mean(), 0.0
        for i, j, (k,) in pairs():
            found = total(square(k, means[i : i + block], means[j : j + block], mean))
            squares += found if i == j else 2 * found
        yield total(times(parameters, x, y) * y), squares

    return moments


def centered_squares(k: jax.Array, rows: jax.Array, columns: jax.Array, mean: jax.Array) -> jax.Array:
    """Sums of the squares of K [n1, n2, o, o] without its row and column means, [n1, o]."""
    return ((k - (rows - mean)[:, None, :, None] - columns[None, :, None, :]) ** 2).sum((1, 3))


def total(array: jax.Array) -> float:
    return float(np.asarray(array).sum(dtype=np.float64))


def pairs_of_blocks(
    network: Network, parameters: list[Any], x: jax.Array, group: Sequence[int], variant: str, block: int
) -> Callable[[], Iterator[tuple[int, int, list[jax.Array]]]]:
    """Kernels of the group's layers between samples from i and samples from j <= i on, for all i and j."""
    of_group = layer_kernels(network, group, variant)
    first = x[:block]
    on_diagonal = compiled(lambda parameters, x: of_group(parameters, x, None), parameters, first)
    below = compiled(of_group, parameters, first, first) if block < len(x) else None

    def pairs() -> Iterator[tuple[int, int, list[jax.Array]]]:
        for i in range(0, len(x), block):
            left = x[i : i + block]
            for j in range(0, i, block):
                yield i, j, below(parameters, left, x[j : j + block])
            yield i, i, on_diagonal(parameters, left)

    return pairs


def layer_kernels(
    network: Network, group: Sequence[int], variant: str
) -> Callable[[list[Any], jax.Array, jax.Array | None], list[jax.Array]]:
    """K of each layer between x1 and x2, [n1, n2, o, o]."""
    import neural_tangents as nt

    implementation = nt.NtkImplementation[variant.upper().replace(" ", "_").replace("-", "_")]

    def of_group(parameters: list[Any], x1: jax.Array, x2: jax.Array | None) -> list[jax.Array]:
        return [
            nt.empirical_ntk_fn(
                of_layer(network, parameters, layer), trace_axes=(), vmap_axes=0, implementation=implementation
            )(x1, x2, parameters[layer])
            for layer in group
        ]

    return of_group


def of_layer(network: Network, parameters: list[Any], layer: int) -> Callable[[Any, jax.Array], jax.Array]:
    """The network as a function of one layer's parameters."""
    return lambda own, x: network([*parameters[:layer], own, *parameters[layer + 1 :]], x)


def plan(
    parameters: list[Any], layers: Sequence[int], problem: Problem, variant: str
) -> Iterator[tuple[list[int], int]]:
    """Groups of layers, and the number of samples that their kernels can be formed of at once: a divisor of n."""
    import jax

    task = problem.task
    widest = 64 * 32 * 32 if task.network == "resnet18" else task.width
    numbers = [sum(array.size for array in jax.tree_util.tree_leaves(own)) for own in parameters]

    def size(layer: int, n: int) -> int:
        """Bytes, roughly: K and copies of it, and Jacobians or tangents of all pairs where they are formed."""
        rows = n * task.outputs
        jacobians = 0 if variant == "structured derivatives" and task.network == "mlp" else rows * numbers[layer]
        tangents = 3 * rows * n * widest if variant == "NTK-vector products" else 0
        return 4 * (3 * rows**2 + jacobians + tangents)

    for group in groups(layers, [size(layer, task.n) for layer in layers]):
        fitting = [b for b in range(1, task.n + 1) if task.n % b == 0 and sum(size(one, b) for one in group) <= BUDGET]
        yield group, max(fitting, default=1)


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function compiled for arguments of these shapes; nothing is run."""
    import jax

    return jax.jit(function).lower(*arguments).compile()


def largest_eigenvalue(
    network: Network, parameters: list[Any], x: jax.Array, problem: Problem
) -> Callable[[], np.ndarray]:
    import jax.numpy as jnp
    import neural_tangents as nt
    from scipy.sparse.linalg import LinearOperator

    layer, shape = problem.layer, (problem.task.n, problem.task.outputs)

    def product(parameters: list[Any], x: jax.Array, v: jax.Array) -> jax.Array:
        return nt.empirical_ntk_vp_fn(of_layer(network, parameters, layer), x, None, parameters[layer])(v)

    times = compiled(product, parameters, x, jnp.zeros(shape))

    def matvec(v: np.ndarray) -> np.ndarray:
        return np.asarray(times(parameters, x, jnp.asarray(v.reshape(shape), jnp.float32))).reshape(-1)

    rows = shape[0] * shape[1]
    return lambda: lanczos(LinearOperator((rows, rows), matvec, dtype=np.float32))


def lanczos(kernel: Any) -> np.ndarray:
    from scipy.sparse.linalg import eigsh

    return eigsh(kernel, 1, tol=EIGENVALUE_TOLERANCE, return_eigenvectors=False)
