"""Layer normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pathways_lm.layers.parameter import ones
from pathways_lm.sharding import Rules


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale, without a bias (PaLM section 2), in fp32."""

    def __init__(self, size: int, epsilon: float, rules: Rules):
        self.scale = ones((size,), ("norm",), rules)
        self.epsilon = epsilon

    def __call__(self, x_BLD: Array) -> Array:
        x = x_BLD.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]).astype(x_BLD.dtype)
