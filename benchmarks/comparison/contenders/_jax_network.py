"""The Hadamard form in one jax.jit: forward, batched cotangents, and alignments or kernels of layers, in float32.

||C K C||_F^2 is formed with K in memory, or by pairs of blocks on and above the diagonal, either in lax.map or unrolled
into one panel a block.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
from jax import lax

jax.config.update("jax_default_matmul_precision", "highest")

Square = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # p [n, n], g [o, n, N], means [o, n]


def layerwise(
    square: Square, model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Alignment of every layer, [L], as a job on arrays that jax already holds; y one-hot [n, o]."""
    arrays = _arrays(model), jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    compiled = jax.jit(lambda *arrays: _layerwise(square, *arrays))
    return lambda: torch.tensor(jax.device_get(compiled(*arrays).block_until_ready()))


def one_square(square: Square, width: int, inputs: int, n: int, o: int) -> Callable[[], jax.Array]:
    """||C K C||_F^2 alone, of random factors of a layer with weights [width, inputs]."""
    keys = jax.random.split(jax.random.key(0), 3)
    a, g = jax.random.normal(keys[0], (n, inputs)), jax.random.normal(keys[1], (o, n, width))
    arrays = a @ a.T, g, jax.random.normal(keys[2], (o, n))
    compiled = jax.jit(square)
    return lambda: compiled(*arrays).block_until_ready()


def kernels(
    model: torch.nn.Sequential, x: torch.Tensor, o: int, layer: int | None = None, summed: bool = False
) -> Callable[[], jax.Array]:
    """K of every layer [L, n*o, n*o], their sum [n*o, n*o], or that of one layer [n*o, n*o]; row x*o + i."""

    def job(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        factors = _factors(weights, x, o)
        if layer is not None:
            return _kernel(*factors[layer])
        found = [_kernel(a, g) for a, g in factors]
        return sum(found) if summed else jnp.stack(found)

    compiled, arrays = jax.jit(job), (_arrays(model), jnp.asarray(x.numpy()))
    return lambda: compiled(*arrays).block_until_ready()


def largest_eigenvalue(
    model: torch.nn.Sequential, x: torch.Tensor, o: int, layer: int, tolerance: float, materialised: bool
) -> Callable[[], jax.Array]:
    """The largest eigenvalue of one layer's K, [1], by Lanczos iteration in lax.while_loop, with K or thin products."""

    def job(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        a, g = _factors(weights, x, o)[layer]
        if materialised:
            k = _kernel(a, g)
            return _lanczos(lambda v: k @ v, len(k), tolerance)

        def product(v: jax.Array) -> jax.Array:
            moment = jnp.einsum("xo,oxi->xi", v.reshape(-1, o), g).T @ a
            return jnp.einsum("oxi,xi->xo", g, a @ moment.T).reshape(-1)

        return _lanczos(product, o * len(x), tolerance)

    compiled, arrays = jax.jit(job), (_arrays(model), jnp.asarray(x.numpy()))
    return lambda: compiled(*arrays).block_until_ready()


def _lanczos(product: Callable[[jax.Array], jax.Array], rows: int, tolerance: float, most: int = 100) -> jax.Array:
    """The iteration of comparison/lanczos.py, with a basis of fixed size."""
    most = min(most, rows)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, basis, small, _, _ = state
        v = product(basis[i])
        small = small.at[i, i].set(basis[i] @ v)
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        below = jnp.linalg.norm(v)
        known = jnp.arange(most) <= i
        values, vectors = jnp.linalg.eigh(jnp.where(known[:, None] & known, small, 0))
        residual = below * jnp.abs(vectors[i, -1])
        small = small.at[i, i + 1].set(below, mode="drop").at[i + 1, i].set(below, mode="drop")
        return i + 1, basis.at[i + 1].set(v / below, mode="drop"), small, values[-1], residual

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        i, _, _, value, residual = state
        return (i < most) & (residual > tolerance * value)

    basis = jnp.zeros((most, rows)).at[0].set(rows**-0.5)
    state = step((jnp.array(0), basis, jnp.zeros((most, most)), jnp.array(0.0), jnp.array(0.0)))
    return lax.while_loop(unfinished, step, state)[3][None]


def _arrays(model: torch.nn.Sequential) -> list[jax.Array]:
    return [jnp.asarray(weight.detach().numpy()) for weight in model.parameters()]


def _layerwise(square: Square, weights: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    factors = _factors(weights, x, y.shape[1])
    return jnp.stack([_alignment(square, a, g, y.T) for a, g in factors])


def _factors(weights: list[jax.Array], x: jax.Array, o: int) -> list[tuple[jax.Array, jax.Array]]:
    """a [n, N_in] and g [o, n, N_out] of every layer."""

    def forward(shifts: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        inputs, h = [], x
        for weight, shift in zip(weights, shifts, strict=True):
            inputs.append(h)
            z = h @ weight.T + shift  # the gradient in a zero shift is the gradient in z
            h = jax.nn.relu(z)
        return z, inputs

    n = len(x)
    shifts = [jnp.zeros((n, len(weight))) for weight in weights]
    _, pullback, inputs = jax.vjp(forward, shifts, has_aux=True)
    cotangents = jnp.broadcast_to(jnp.eye(o)[:, None], (o, n, o))
    gradients = jax.vmap(pullback)(cotangents)[0]  # [o, n, N_out] each
    return list(zip(inputs, gradients, strict=True))


def _kernel(a: jax.Array, g: jax.Array) -> jax.Array:
    """K [n*o, n*o], row x*o + i."""
    o, n, width = g.shape
    rows = g.swapaxes(0, 1).reshape(n * o, width)
    k = (rows @ rows.T).reshape(n, o, n, o) * (a @ a.T)[:, None, :, None]
    return k.reshape(n * o, n * o)


def _alignment(square: Square, a: jax.Array, g: jax.Array, y: jax.Array) -> jax.Array:
    """a [n, N_in], g [o, n, N_out], y [o, n]."""
    target = y - y.mean()
    means = jnp.einsum("oxi,xi->ox", g, a @ (g.sum(0).T @ a / y.size).T)
    moment = jnp.einsum("ox,oxi->xi", target, g).T @ a
    return jnp.sum(moment**2) / jnp.sum(target**2) / jnp.sqrt(square(a @ a.T, g, means))


def materialised(p: jax.Array, g: jax.Array, means: jax.Array) -> jax.Array:
    """||C K C||_F^2 with K [o, n, o, n] in memory, unless XLA fuses it away."""
    k = jnp.einsum("oxi,qyi->oxqy", g, g) * p[:, None, :]
    k = k - (means - means.mean())[:, :, None, None] - means
    return jnp.sum(jnp.sum(k**2, axis=(2, 3)))


def symmetric(block: int, unrolled: bool) -> Square:
    """||C K C||_F^2 by blocks on and above the diagonal: pairs in lax.map, or a panel for each block row, unrolled."""

    def square(p: jax.Array, g: jax.Array, means: jax.Array) -> jax.Array:
        o, n, width = g.shape
        count = n // block
        g = g.reshape(o, count, block, width).swapaxes(0, 1).reshape(count, o * block, width)
        columns = means.reshape(o, count, block).swapaxes(0, 1)  # [count, o, block]
        rows = columns - means.mean()
        p = p.reshape(count, block, count, block).swapaxes(1, 2)  # [count, count, block, block]

        def panel(i: jax.Array | int, right: jax.Array, p_right: jax.Array, column: jax.Array) -> jax.Array:
            """Sums over each of the k blocks to the right; right [k, o * block, width]."""
            q = (g[i] @ right.reshape(-1, width).T).reshape(o, block, -1, o, block)
            k = q * p_right.swapaxes(0, 1)[:, :, None, :] - rows[i][:, :, None, None, None] - column
            return jnp.sum(jnp.sum(k**2, axis=-1), axis=(0, 1, 3))

        if unrolled:
            sums = [panel(i, g[i:], p[i, i:], columns[i:]) for i in range(count)]
            return sum(2 * jnp.sum(part) - part[0] for part in sums)
        i, j = jnp.triu_indices(count)
        parts = lax.map(lambda ij: panel(ij[0], g[ij[1]][None], p[ij[0], ij[1]][None], columns[ij[1]][None])[0], (i, j))
        return jnp.sum(jnp.where(i == j, 1, 2) * parts)

    return square
