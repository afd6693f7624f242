"""Where a token stands: rotary angles, T5's relative buckets, tables."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pathways_lm.config import ModelConfig
from pathways_lm.layers.parameter import Init, normal
from pathways_lm.sharding import Rules


def rotary_angles(positions_BL: Array, head_dim: int, base: float) -> tuple[Array, Array]:
    """Cosine and sine of position / base^(2i / head_dim), each [B, L, head_dim / 2] in fp32."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BL[:, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLNH: Array, angles: tuple[Array, Array]) -> Array:
    """Turns the pairs (i, i + H/2) of each head by its position's angles (RoFormer, arXiv:2104.09864).

    Pairs are the halves of a head, not neighbours, as in the open Google layers.
    """
    cos, sin = (angle[:, :, None, :] for angle in angles)
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLNH.dtype)


def relative_buckets(
    query_positions_BT: Array, key_positions_BS: Array, num_buckets: int, max_distance: int, causal: bool
) -> Array:
    """T5's bucket of each distance, int32 [B, T, S] (arXiv:1910.10683, section 2.1).

    Half the buckets stand for one distance each, the other half for ranges that grow logarithmically up to
    `max_distance`, beyond which all are one. Not causal, half of them are for keys behind the query.
    """
    behind_BTS = key_positions_BS[:, None, :] - query_positions_BT[:, :, None]
    first: Array | int = 0
    if causal:
        distance_BTS = jnp.maximum(-behind_BTS, 0)
    else:
        num_buckets //= 2
        first = num_buckets * (behind_BTS > 0)
        distance_BTS = jnp.abs(behind_BTS)
    exact = num_buckets // 2
    # The logarithms as T5 takes them: a rounding of the boundary would move a distance to another bucket.
    ratio = jnp.log(jnp.maximum(distance_BTS, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return first + jnp.where(distance_BTS < exact, distance_BTS, far)


class RelativeBias(nnx.Module):
    """What is added to a score for the distance between query and key, one number a bucket and head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        shape = (config.relative_buckets, config.num_heads)
        # As T5 draws it, but for Megatron's scheme, which knows one deviation only.
        std = config.init_std if config.init == "megatron" else config.embed_dim**-0.5
        self.table = normal(rngs, shape, ("norm", "heads"), std, rules)
        self.rules = rules

    def __call__(self, buckets_BTS: Array) -> Array:
        """[B, T, S, N], cut along heads and the queries' length."""
        batch = "batch" if buckets_BTS.shape[0] > 1 else None
        return self.table[...].at[buckets_BTS].get(out_sharding=self.rules(batch, "length", None, "heads"))


class Table(nnx.Module):
    """An embedding of small numbers: learned positions, token types."""

    def __init__(self, rows: int, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        self.table = Init(config, rules).table(rngs, (rows, config.embed_dim), ("norm", "embed"))
        self.rules = rules

    def __call__(self, ids_BL: Array) -> Array:
        """[B, L, D], cut as the residual stream. B may be 1."""
        batch = "batch" if ids_BL.shape[0] > 1 else None
        whole_BLD = self.table[...].at[jnp.maximum(ids_BL, 0)].get(out_sharding=self.rules(batch, "length", None))
        return jax.sharding.reshard(whole_BLD, self.rules(batch, "residual_length", "residual"))
