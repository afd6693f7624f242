"""Token embeddings, shared with the output."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.layers.parameter import normal
from pathways_lm.sharding import Rules


class Embedding(nnx.Module):
    """One table for input and output (PaLM sections 2 and 5.1): drawn from N(0, 1), logits scaled by 1/sqrt(D)."""

    def __init__(self, vocab_size: int, embed_dim: int, rngs: nnx.Rngs, rules: Rules):
        self.table = normal(rngs, (vocab_size, embed_dim), ("vocab", "embed"), 1.0, rules)
        self.rules = rules

    def encode(self, tokens_BL: Array) -> Array:
        """[B, L, D], cut as the residual stream."""
        # Whole along the model dimension first: a lookup straight into a cut one makes the TPU
        # compiler combine reductions over groups of several sizes, which it refuses.
        x_BLD = self.table[...].at[tokens_BL].get(out_sharding=self.rules("batch", "length", None))
        return reshard(x_BLD, self.rules("batch", "length", "residual"))

    def decode(self, x_BLD: Array) -> Array:
        """Logits [B, L, V], cut along the vocabulary."""
        x_BLD = reshard(x_BLD * x_BLD.shape[-1] ** -0.5, self.rules("batch", "length", None))
        table_VD = reshard(self.table[...], self.rules("vocab", None))
        return jnp.einsum("bld,vd->blv", x_BLD, table_VD, out_sharding=self.rules("batch", "length", "vocab"))
