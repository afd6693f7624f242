"""Learning rates as functions of the update's number k, counted from 1."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from pathways_lm.config import OptimizerConfig
from pathways_lm.config.optimizer import warmup_length

Schedule = Callable[[Array], Array]


def make_schedule(
    config: OptimizerConfig,
    num_steps: int,
    tokens_per_step: int = 0,
    tokens_read: Callable[[Array], Array] | None = None,
) -> Schedule:
    """The rate at update k: the warm-up's share min(1, k / warmup), times the schedule's.

    With W steps of warm-up, f the final fraction and N = num_steps:

        rsqrt     rate min(1, sqrt(hold / k))                          PaLM section 5.1, T5 section 3.1.2
        cosine    rate (f + (1 - f) (1 + cos(pi t)) / 2)               t = (k - W) / (N - W), arXiv:1608.03983
        linear    rate (1 - (1 - f) t)                                 the same t
        wsd       the same, t = (k - W - hold) / decay                 arXiv:2404.06395, section 4
        constant  rate

    and t within 0 and 1. PaLM's and T5's 1 / sqrt(max(k, 10^4)) is rate 1e-2 and hold 10,000.

    Args:
      tokens_per_step: for a warm-up in tokens, which needs it.
      tokens_read: of a run whose batches grow, the tokens that the first k steps read. The warm-up then follows these;
        where a fall begins is still told by `tokens_per_step`.
    """
    rate, hold, final = config.learning_rate, config.hold_steps, config.final_fraction
    warmup = warmup_length(config.warmup_steps, config.warmup_tokens, tokens_per_step)
    begin = warmup + hold if config.schedule == "wsd" else warmup
    length = config.decay_steps if config.schedule == "wsd" else num_steps - warmup

    def scheduled(k: Array) -> Array:
        share = jnp.minimum(1.0, k / warmup) if warmup else jnp.ones_like(k)
        if config.warmup_tokens and tokens_read is not None:
            share = jnp.minimum(1.0, tokens_read(k) / config.warmup_tokens)
        if config.schedule == "rsqrt":
            return rate * share * jnp.minimum(1.0, jnp.sqrt(hold / k))
        if config.schedule == "constant":
            return rate * share
        fallen = jnp.clip((k - begin) / length, 0.0, 1.0)
        if config.schedule == "cosine":
            fallen = (1 - jnp.cos(jnp.pi * fallen)) / 2
        return rate * share * (1 - (1 - final) * fallen)

    return lambda k: scheduled(jnp.asarray(k, float))
