"""Which token goes to which expert.

Tokens compete for places in groups of fixed size, whatever the number of devices (GShard, arXiv:2006.16668,
section 2.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.config import MoEConfig


class Routing(NamedTuple):
    """The K choices of every token. Where experts choose, K is the number of experts."""

    experts_GSK: Array
    """int32"""
    slots_GSK: Array
    """int32: the choice's place among those of its expert in the group, from 0."""
    gates_GSK: Array
    """fp32: what the expert's output is multiplied with."""
    wanted_GSK: Array
    """False for padding, and for second choices that were not drawn."""
    kept_GSK: Array
    """Wanted, and within the expert's capacity."""


def capacity(config: MoEConfig, group_tokens: int, training: bool) -> int:
    """Places of an expert in a group: floor(tokens x factor / experts), within the minimum and the group."""
    factor = config.capacity_factor if training else config.eval_capacity_factor
    return min(max(int(group_tokens * factor / config.num_experts), config.min_capacity), group_tokens)


def route(config: MoEConfig, probabilities_GSE: Array, valid_GS: Array, places: int, key: Array | None) -> Routing:
    """Chooses experts by the router's probabilities.

    Args:
      valid_GS: false for padding, which is sent nowhere.
      places: the capacity of an expert.
      key: for second choices, in training.
    """
    if config.router == "expert_choice":
        return _experts_choose(probabilities_GSE, valid_GS, places)
    gates_GSK, experts_GSK = jax.lax.top_k(probabilities_GSE, config.top_k)
    if config.renormalise:
        # By all choices, also where one of them finds no place (GShard algorithm 1).
        gates_GSK = gates_GSK / jnp.sum(gates_GSK, axis=-1, keepdims=True)
    wanted_GSK = jnp.broadcast_to(valid_GS[:, :, None], gates_GSK.shape)
    if key is not None and config.top_k == 2 and config.second_expert != "all":
        wanted_GSK = wanted_GSK & _second_drawn(config, gates_GSK, key)
    slots_GSK = _slots(experts_GSK, wanted_GSK, config.num_experts)
    return Routing(experts_GSK, slots_GSK, gates_GSK, wanted_GSK, wanted_GSK & (slots_GSK < places))


def _second_drawn(config: MoEConfig, gates_GSK: Array, key: Array) -> Array:
    """True for first choices, and for second ones with their probability.

    min(1, 2 g2) for `random` (GShard section 2.2), min(1, g2 / threshold) for `threshold` (ST-MoE appendix).
    """
    scale = 2.0 if config.second_expert == "random" else 1.0 / config.second_threshold
    second_GS = gates_GSK[:, :, 1]
    lot_GS = jax.random.uniform(key, second_GS.shape, out_sharding=jax.typeof(second_GS).sharding)
    drawn_GS = lot_GS < scale * second_GS
    return jnp.stack([jnp.ones_like(drawn_GS), drawn_GS], axis=-1)


def _slots(experts_GSK: Array, wanted_GSK: Array, num_experts: int) -> Array:
    """How many choices of the same expert come before: all first choices before all second ones, in token order."""
    chosen_GKSE = jnp.swapaxes(jax.nn.one_hot(experts_GSK, num_experts, dtype=jnp.int32), 1, 2)
    chosen_GKSE = chosen_GKSE * jnp.swapaxes(wanted_GSK, 1, 2)[..., None]
    G, K, S, E = chosen_GKSE.shape
    before = jnp.cumsum(jnp.reshape(chosen_GKSE, (G, K * S, E)), axis=1)
    before_GKSE = jnp.reshape(before, (G, K, S, E)) - chosen_GKSE
    return jnp.swapaxes(jnp.sum(before_GKSE * chosen_GKSE, axis=-1), 1, 2)


def _experts_choose(probabilities_GSE: Array, valid_GS: Array, places: int) -> Routing:
    """Every expert takes the tokens that are likeliest for it (Zhou et al., arXiv:2202.09368)."""
    likelihood_GSE = jnp.where(valid_GS[:, :, None], probabilities_GSE, -1.0)
    rank_GSE = jnp.argsort(jnp.argsort(-likelihood_GSE, axis=1, stable=True), axis=1).astype(jnp.int32)
    cut = jax.typeof(probabilities_GSE).sharding
    experts_GSE = jax.lax.broadcasted_iota(jnp.int32, rank_GSE.shape, 2, out_sharding=cut)
    kept_GSE = valid_GS[:, :, None] & (rank_GSE < places)
    return Routing(experts_GSE, rank_GSE, probabilities_GSE, kept_GSE, kept_GSE)
