"""The same job in one jax.jit: forward, batched cotangents and the alignment of every layer, in float32.

||C K C||_F^2 is formed with K in memory, by panels of rows in lax.map, or by pairs of blocks on and above the
diagonal, either in lax.map or unrolled into one panel a block; the benchmark takes the fastest.
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
    weights = [jnp.asarray(weight.detach().numpy()) for weight in model.parameters()]
    arrays = weights, jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    compiled = jax.jit(lambda *arrays: _layerwise(square, *arrays))
    return lambda: torch.tensor(jax.device_get(compiled(*arrays).block_until_ready()))


def _layerwise(square: Square, weights: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    def forward(shifts: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        inputs, h = [], x
        for weight, shift in zip(weights, shifts, strict=True):
            inputs.append(h)
            z = h @ weight.T + shift  # the gradient in a zero shift is the gradient in z
            h = jax.nn.relu(z)
        return z, inputs

    n, o = y.shape
    shifts = [jnp.zeros((n, len(weight))) for weight in weights]
    _, pullback, inputs = jax.vjp(forward, shifts, has_aux=True)
    cotangents = jnp.broadcast_to(jnp.eye(o)[:, None], (o, n, o))
    gradients = jax.vmap(pullback)(cotangents)[0]  # [o, n, N_out] each
    return jnp.stack([_alignment(square, a, g, y.T) for a, g in zip(inputs, gradients, strict=True)])


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


def panels(block: int) -> Square:
    """All of K, `block` samples of rows at a time."""

    def square(p: jax.Array, g: jax.Array, means: jax.Array) -> jax.Array:
        o, n, width = g.shape
        rows = (means - means.mean()).reshape(o, -1, block).swapaxes(0, 1)  # [count, o, block]

        def panel(operands: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            left, p_rows, row = operands
            k = jnp.einsum("oxi,qyi->oxqy", left, g) * p_rows[:, None, :] - row[:, :, None, None] - means
            return jnp.sum(jnp.sum(k**2, axis=(2, 3)))

        lefts = g.reshape(o, -1, block, width).swapaxes(0, 1)
        return jnp.sum(lax.map(panel, (lefts, p.reshape(-1, block, n), rows)))

    return square


def symmetric(block: int, unrolled: bool) -> Square:
    """On and above the diagonal: pairs of blocks in lax.map, or a panel a block of rows, unrolled."""

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
