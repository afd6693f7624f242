"""From logits to the next token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.errors import ConfigError


@dataclass(frozen=True)
class Sampler:
    """Temperature first, then top-k, then top-p among what is left."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities add up to at least this."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or above, not {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 or above, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def logits(self, logits_BV: Array) -> Array:
        """Logits of the distribution that is drawn from; tokens left out have -inf."""
        logits_BV = logits_BV.astype(jnp.float32) / self.temperature
        if 0 < self.top_k < logits_BV.shape[-1]:
            smallest_B1 = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
        if self.top_p < 1:
            sorted_BV = -jnp.sort(-logits_BV, axis=-1)
            probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
            before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
            smallest_B1 = jnp.min(jnp.where(before_BV < self.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
            logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
        return logits_BV

    def choose(self, logits_BV: Array, keys_B: Array) -> Array:
        """The next token of each sequence, int32 [B], drawn with a key of its own."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys_B, self.logits(logits_BV)).astype(jnp.int32)
