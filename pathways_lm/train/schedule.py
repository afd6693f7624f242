"""Learning rates as functions of the update's number k, counted from 1."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array

from pathways_lm.config import OptimizerConfig

Schedule = Callable[[Array], Array]


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """The rate at update k.

    `rsqrt`: rate * min(1, sqrt(hold / k)). PaLM section 5.1, 1 / sqrt(max(k, 10^4)), is rate 1e-2 and hold 10,000.
    `cosine`: a linear warm-up over `hold_steps`, then a cosine to a tenth of the rate at `num_steps`.
    """
    rate, hold = config.learning_rate, config.hold_steps
    if config.schedule == "rsqrt":
        return lambda k: rate * jnp.minimum(1.0, jnp.sqrt(hold / k.astype(jnp.float32)))
    return optax.warmup_cosine_decay_schedule(0.0, rate, hold, num_steps, end_value=0.1 * rate)
