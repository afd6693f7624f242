"""Norms of gradients and parameters, group by group: which layer grows or dies."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.models.model import Model, Params

Norms = dict[str, Array]
"""fp32: of a group's arrays together, a scalar, or [L] where it is a stack of layers."""


def squares(model: Model, tree: Params) -> Norms:
    """Sums of squares of each group: what stands above the stacks of layers, and of these each layer."""
    dims = jax.tree.map(lambda variable: len(variable.dims), model.variables, is_leaf=_is_variable)
    own = nnx.to_pure_dict(dims)
    found: Norms = {}
    for (path, leaf), size in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(own), strict=True):
        lead = leaf.ndim - size
        square = jnp.square(leaf.astype(jnp.float32))
        total = reshard(jnp.sum(square, axis=tuple(range(lead, leaf.ndim))), model.rules(*(None,) * lead))
        name = _group([str(key.key) for key in path])
        found[name] = found[name] + total if name in found else total
    return found


def total(found: Norms) -> Array:
    """The norm of everything."""
    return jnp.sqrt(sum(jnp.sum(square) for square in found.values()))


def roots(found: Norms) -> Norms:
    """Norms from sums of squares."""
    return {name: jnp.sqrt(square) for name, square in found.items()}


def _group(path: list[str]) -> str:
    """`decoder/layers`, with the place in a pattern of unlike layers behind it; `decoder/norm`, `embedding`."""
    if "layers" in path:
        place = path.index("layers")
        tower = [part for part in path[:place] if part != "blocks"]
        pattern = [part for part in path[place + 1 : place + 2] if part.startswith("block_")]
        return "/".join([*tower, "layers", *pattern])
    return "/".join(path[:-1]) or path[0]


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
