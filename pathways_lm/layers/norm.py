"""Normalisation over the model dimension."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pathways_lm.config import ModelConfig
from pathways_lm.layers.again import computed_again
from pathways_lm.layers.parameter import ones, zeros
from pathways_lm.sharding import Rules


class Norm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon), in fp32, with a scale and a bias where the config has them.

    `layer` subtracts the mean first (LayerNorm, arXiv:1607.06450), `rms` does not (RMSNorm, arXiv:1910.07467).
    PaLM's is `layer` without a bias (section 2), T5's is `rms` without one. For the backward pass its input is kept, in
    its own type, and nothing of what comes between in fp32.
    """

    def __init__(self, config: ModelConfig, rules: Rules):
        if config.norm_scale:
            self.scale = ones((config.embed_dim,), ("norm",), rules)
        if config.norm_bias:
            self.bias = zeros((config.embed_dim,), ("norm",), rules)
        self.config = config

    @jax.named_scope("norm")
    def __call__(self, x_BLD: Array) -> Array:
        scale_D = self.scale[...] if self.config.norm_scale else None
        bias_D = self.bias[...] if self.config.norm_bias else None
        return computed_again(self._normalized, apart=False)(x_BLD, scale_D, bias_D)

    def _normalized(self, x_BLD: Array, scale_D: Array | None, bias_D: Array | None) -> Array:
        x = x_BLD.astype(jnp.float32)
        if self.config.norm == "layer":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.config.norm_epsilon)
        x = x if scale_D is None else x * scale_D
        x = x if bias_D is None else x + bias_D
        return x.astype(x_BLD.dtype)
