"""Muon: momentum whose singular values are made equal (Jordan, kellerjordan.github.io/posts/muon; arXiv:2502.16982)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.models.model import Params
from pathways_lm.train.optimizers.treatment import Treatment

# Of the odd polynomial of degree five that is applied again and again: steep at 0, and near 1 about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# What makes the update of a matrix, whatever its shape, about as long as one of AdamW's (arXiv:2502.16982, eq. 4).
RMS = 0.2


class MuonState(NamedTuple):
    """The momentum, shaped as the parameters."""

    momentum: Params


def is_matrix(how: Treatment) -> bool:
    """Whether Muon moves it: the kernels of blocks, each head's and expert's with it, but for routers."""
    return how.in_blocks and bool(how.columns) and how.name != "router"


def scale_by_muon(momentum: float, treated: Params) -> optax.GradientTransformation:
    """Nesterov momentum, made orthogonal:

        m <- momentum m + g
        u = 0.2 sqrt(max(rows, columns)) NewtonSchulz(g + momentum m)

    optax's own refuses matrices that are cut over devices.
    """

    def init(params: Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: MuonState, params: Params | None = None) -> tuple[Params, MuonState]:
        moved = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, grads)

        def direction(how: Treatment, g: Array | optax.MaskedNode, m: Array) -> Array | optax.MaskedNode:
            return g if isinstance(g, optax.MaskedNode) else orthogonal(g + momentum * m, how)

        return jax.tree.map(direction, treated, grads, moved), MuonState(moved)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def orthogonal(x: Array, how: Treatment) -> Array:
    """Each of the stacked matrices with its singular values near 1, times 0.2 sqrt(its longer side)."""
    order = (*how.stack, *how.rows, *how.columns)
    turned = jnp.transpose(x, order)
    lead = len(how.stack)
    flat = _flattened(turned, lead)
    if tall := flat.shape[-2] > flat.shape[-1]:
        flat = jnp.swapaxes(flat, -1, -2)
    was = jax.typeof(flat).sharding
    even = reshard(newton_schulz(reshard(flat, _laid(flat))), was)
    even = RMS * math.sqrt(flat.shape[-1]) * even
    if tall:
        even = jnp.swapaxes(even, -1, -2)
    unfolded = jnp.reshape(even, turned.shape, out_sharding=jax.typeof(turned).sharding)
    return jnp.transpose(unfolded, tuple(order.index(place) for place in range(x.ndim)))


def newton_schulz(x: Array) -> Array:
    """The matrices [..., m, n] with singular values brought near 1; m whole on every device, n may be cut.

    Each iteration adds one m x m product over devices; all else is done where the columns lie.
    """
    a, b, c = COEFFICIENTS
    columns = jax.typeof(x).sharding
    square = NamedSharding(columns.mesh, PartitionSpec(*columns.spec[:-1], None))
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-1, -2), keepdims=True)) + 1e-7)
    for _ in range(ITERATIONS):
        gram = jnp.einsum("...mn,...kn->...mk", x, x, out_sharding=square)
        mixed = b * gram + c * jnp.einsum("...mk,...kl->...ml", gram, gram, out_sharding=square)
        x = a * x + jnp.einsum("...mk,...kn->...mn", mixed, x, out_sharding=columns)
    return x


def _flattened(x: Array, lead: int) -> Array:
    """[..., rows, columns], columns of several dimensions as one."""
    spec = (*jax.typeof(x).sharding.spec, *(None,) * x.ndim)[: x.ndim]
    shape = (*x.shape[: lead + 1], math.prod(x.shape[lead + 1 :]))
    # Heads are cut, what is in a head is not: so a device's columns stay together.
    out = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec[: lead + 2]))
    return jnp.reshape(x, shape, out_sharding=out)


def _laid(x: Array) -> NamedSharding:
    """The shorter side whole, the longer one over all devices that had parts of either, as far as they divide it."""
    mesh = jax.typeof(x).sharding.mesh
    *stack, rows, columns = (*jax.typeof(x).sharding.spec, *(None,) * x.ndim)[: x.ndim]
    axes: tuple[str, ...] = ()
    for axis in (*_axes(columns), *_axes(rows)):
        if x.shape[-1] % (math.prod(mesh.shape[taken] for taken in axes) * mesh.shape[axis]) == 0:
            axes = (*axes, axis)
    return NamedSharding(mesh, PartitionSpec(*stack, None, axes or None))


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
