"""What routers add to the loss, and what is told of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.config import MoEConfig
from pathways_lm.layers.moe.router import Routing


class RouterSums(NamedTuple):
    """Sums over tokens, fp32 scalars but for the load, to be added over parts of a batch and divided once.

    The balance loss is a mean over the groups of a batch, each with the weight of its tokens: so it does not depend on
    how the groups are spread over devices and microbatches.
    """

    balance: Array
    """The balance loss of each group times its tokens."""
    z: Array
    """log(sum(exp(logits)))^2 of each token (ST-MoE, arXiv:2202.08906, equation 5)."""
    tokens: Array
    """Tokens routed: all but padding."""
    load_E: Array
    """Choices of each expert, also those that found no place."""
    choices: Array
    dropped: Array
    """Choices that found no place."""
    entropy: Array
    """Of each token's probabilities, nats."""


def router_sums(
    config: MoEConfig, logits_GSE: Array, probabilities_GSE: Array, routing: Routing, valid_GS: Array
) -> RouterSums:
    """The sums over all groups."""
    valid_GS1 = valid_GS[:, :, None].astype(jnp.float32)
    tokens_G = jnp.sum(valid_GS1, axis=(1, 2))
    one_hot_GSKE = jax.nn.one_hot(routing.experts_GSK, config.num_experts, dtype=jnp.float32)
    choices_GSKE = one_hot_GSKE * routing.wanted_GSK[..., None]
    balance_G = _balance(config, probabilities_GSE * valid_GS1, one_hot_GSKE * valid_GS1[..., None], tokens_G)
    entropy_GS = -jnp.sum(probabilities_GSE * jnp.log(jnp.maximum(probabilities_GSE, 1e-30)), axis=-1)
    z_GS = jnp.square(jax.nn.logsumexp(logits_GSE, axis=-1))
    return RouterSums(
        balance=jnp.sum(balance_G * tokens_G),
        z=jnp.sum(z_GS * valid_GS1[:, :, 0]),
        tokens=jnp.sum(tokens_G),
        load_E=jnp.sum(choices_GSKE, axis=(0, 1, 2)),
        choices=jnp.sum(routing.wanted_GSK.astype(jnp.float32)),
        dropped=jnp.sum((routing.wanted_GSK & ~routing.kept_GSK).astype(jnp.float32)),
        entropy=jnp.sum(jax.lax.stop_gradient(entropy_GS) * valid_GS1[:, :, 0]),
    )


def _balance(config: MoEConfig, probabilities_GSE: Array, choices_GSKE: Array, tokens_G: Array) -> Array:
    """The balance loss of each group, from the choices as they were made, before capacity.

    switch: E sum_i f_i P_i, f_i the share of tokens with expert i among their choices, P_i its mean probability
    (Switch equations 4 to 6): 1 for even use by one choice, k by k. gshard: (1/E) sum_i (c_i/S) m_i with first choices
    only (GShard algorithm 1): 1/E^2 for even use.
    """
    if config.router == "expert_choice":
        return jnp.zeros_like(tokens_G)
    count_G1 = jnp.maximum(tokens_G, 1.0)[:, None]
    mean_GE = jnp.sum(probabilities_GSE, axis=1) / count_G1
    if config.balance == "gshard":
        first_GE = jnp.sum(choices_GSKE[:, :, 0], axis=1) / count_G1
        return jnp.sum(first_GE * mean_GE, axis=-1) / config.num_experts
    chosen_GE = jnp.sum(choices_GSKE, axis=(1, 2)) / count_G1
    return config.num_experts * jnp.sum(chosen_GE * mean_GE, axis=-1)
