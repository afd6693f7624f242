"""The gated feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.layers.parameter import normal
from pathways_lm.sharding import Rules


class SwiGLU(nnx.Module):
    """(swish(x W) * x V) W2, without biases (PaLM section 2; Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D, F = config.embed_dim, config.mlp_dim
        self.gate = normal(rngs, (D, F), ("embed", "mlp"), D**-0.5, rules)
        self.up = normal(rngs, (D, F), ("embed", "mlp"), D**-0.5, rules)
        self.down = normal(rngs, (F, D), ("mlp", "embed"), F**-0.5, rules)
        self.rules = rules

    def __call__(self, h_BLD: Array) -> Array:
        """Takes an input whole along D; gives an output cut as the residual stream."""
        rules = self.rules
        hidden = rules("batch", "length", "mlp")
        gate = jnp.einsum("bld,df->blf", h_BLD, reshard(self.gate[...], rules(None, "mlp")), out_sharding=hidden)
        up = jnp.einsum("bld,df->blf", h_BLD, reshard(self.up[...], rules(None, "mlp")), out_sharding=hidden)
        down_FD = reshard(self.down[...], rules("mlp", None))
        out = rules("batch", "length", "residual")
        return jnp.einsum("blf,fd->bld", jax.nn.silu(gate) * up, down_FD, out_sharding=out)
