"""Moving arrays whose first dimension counts stages, each stage's part on its own devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec, reshard

from pathways_lm.sharding import Rules


def rotate(tree: Any, rules: Rules, by: int) -> Any:
    """Each stage's part to the stage `by` further on; the last one's comes to the first."""
    S, (axis,) = rules.stages, rules.axes("stage")
    pairs = [(stage, (stage + by) % S) for stage in range(S)]

    def one(array: Array) -> Array:
        spec = _spec(array)
        return jax.shard_map(
            lambda part: jax.lax.ppermute(part, axis, pairs), mesh=_mesh(rules), in_specs=spec, out_specs=spec
        )(array)

    return jax.tree.map(one, tree)


def write(buffer: Any, parts: Any, place_S: Array, live_S: Array, rules: Rules) -> Any:
    """Puts each stage's part into a place of its own of `buffer` [S, places, ...], where it is live."""

    def local(buffer: Array, part: Array, place: Array, live: Array) -> Array:
        old = jax.lax.dynamic_index_in_dim(buffer[0], place[0], keepdims=False)
        new = jnp.where(live[0], part[0], old)
        return jax.lax.dynamic_update_index_in_dim(buffer[0], new, place[0], 0)[None]

    def one(buffer: Array, part: Array) -> Array:
        stage = rules("stage").spec
        specs = (_spec(buffer), _spec(part), stage, stage)
        mapped = jax.shard_map(local, mesh=_mesh(rules), in_specs=specs, out_specs=_spec(buffer))
        return mapped(buffer, part, place_S, live_S)

    return jax.tree.map(one, buffer, parts)


def read(buffer: Any, place_S: Array, rules: Rules) -> Any:
    """Each stage's part from a place of its own of `buffer` [S, places, ...]."""

    def local(buffer: Array, place: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(buffer[0], place[0], keepdims=False)[None]

    def one(buffer: Array) -> Array:
        if buffer.shape[1] == 1:
            return buffer[:, 0]
        spec = _spec(buffer)
        out = PartitionSpec(spec.partitions[0], *spec.partitions[2:])
        return jax.shard_map(local, mesh=_mesh(rules), in_specs=(spec, rules("stage").spec), out_specs=out)(
            buffer, place_S
        )

    return jax.tree.map(one, buffer)


def add_at(total: Array, part: Array, place_S: Array) -> Array:
    """Adds each stage's part [S, ...] to a place of its own of `total` [S, places, ...].

    Both may be sums still to be added over devices, which only additions and choices are for.
    """
    wide = jnp.expand_dims(part, 1)
    if total.shape[1] == 1:
        return total + wide
    places = jnp.arange(total.shape[1])
    hit = (place_S[:, None] == places).reshape(*total.shape[:2], *(1 for _ in part.shape[1:]))
    spec = _spec(total)
    plain = jax.typeof(total).sharding.update(spec=PartitionSpec(*spec.partitions))
    hit = jnp.broadcast_to(hit, total.shape)
    return jax.lax.select(reshard(hit, plain), total + jnp.broadcast_to(wide, total.shape), total)


def of_stage(tree: Any, chosen_S: Array) -> Any:
    """The chosen stage's part, to all; zeros where none is chosen."""

    def one(array: Array) -> Array:
        return jnp.sum(masked(array, chosen_S), axis=0)

    return jax.tree.map(one, tree)


def masked(tree: Any, live_S: Array) -> Any:
    """Zeros in place of the parts of stages that are not live."""
    return jax.tree.map(lambda array: jnp.where(live_S.reshape(-1, *(1 for _ in array.shape[1:])), array, 0), tree)


def at_stage(chosen_S: Array, whole: Any, parts: Any) -> Any:
    """`parts` with the chosen stages' replaced by `whole`, which has no dimension of stages."""

    def one(whole: Array, parts: Array) -> Array:
        mask = chosen_S.reshape(-1, *(1 for _ in whole.shape))
        return jnp.where(mask, whole[None].astype(parts.dtype), parts)

    return jax.tree.map(one, whole, parts)


def _spec(array: Array) -> PartitionSpec:
    return jax.typeof(array).sharding.spec


def _mesh(rules: Rules) -> Mesh:
    assert isinstance(rules.mesh, Mesh)
    return rules.mesh
