"""Keys and values of the tokens so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, reshard

from pathways_lm.config import ModelConfig
from pathways_lm.layers.attention import KeyValue, kv_heads
from pathways_lm.sharding import Rules


class Cache(NamedTuple):
    """`S` slots for every sequence of a batch.

    Prompts of different lengths end at the same slot, with empty slots before the shorter ones, so
    that a step writes one slot for all.
    """

    keys: Array
    """[layers, B, S, K, H]"""
    values: Array
    """[layers, B, S, K, H]"""
    positions: Array
    """int32 [B, S]: where the token of a slot stands; -1 is an empty slot."""
    used: Array
    """int32 scalar: slots written so far."""


def empty(config: ModelConfig, batch: int, slots: int, dtype: jnp.dtype, rules: Rules) -> Cache:
    """A cache without tokens. With 0 slots, it is what a prompt is appended to."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    placed = _placed(config, rules)
    # From JAX 0.12 on, constants have no sharding before they are put somewhere.
    return Cache(
        keys=reshard(jnp.zeros(shape, dtype), placed),
        values=reshard(jnp.zeros(shape, dtype), placed),
        positions=reshard(jnp.full((batch, slots), -1, jnp.int32), rules("batch", None)),
        used=jnp.zeros((), jnp.int32),
    )


def shardings(config: ModelConfig, rules: Rules) -> Any:
    """Where a cache's arrays lie, as a `Cache` of shardings."""
    held: Any = _placed(config, rules)
    positions: Any = rules("batch", None)
    used: Any = rules()
    return Cache(held, held, positions, used)


def _placed(config: ModelConfig, rules: Rules) -> NamedSharding:
    return rules(None, "batch", None, kv_heads(config, rules), None)


def write(cache: Cache, fresh: KeyValue, positions_BL: Array) -> Cache:
    """Puts the keys and values of `L` new tokens, each [layers, B, L, K, H], into the next slots."""
    at = cache.used
    return Cache(
        keys=jax.lax.dynamic_update_slice_in_dim(cache.keys, fresh[0].astype(cache.keys.dtype), at, axis=2),
        values=jax.lax.dynamic_update_slice_in_dim(cache.values, fresh[1].astype(cache.values.dtype), at, axis=2),
        positions=jax.lax.dynamic_update_slice_in_dim(cache.positions, positions_BL, at, axis=1),
        used=at + positions_BL.shape[1],
    )
