"""The parallel transformer block."""

from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.layers.attention import Attention, KeyValue
from pathways_lm.layers.mlp import SwiGLU
from pathways_lm.layers.norm import LayerNorm
from pathways_lm.sharding import Rules


class ParallelBlock(nnx.Module):
    """y = x + MLP(LN(x)) + Attention(LN(x)), one norm for both (PaLM section 2)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        self.norm = LayerNorm(config.embed_dim, config.norm_epsilon, rules)
        self.attention = Attention(config, rngs, rules)
        self.mlp = SwiGLU(config, rngs, rules)
        self.rules = rules

    def __call__(
        self, x_BLD: Array, angles: tuple[Array, Array], mask_BTS: Array, cached: KeyValue | None
    ) -> tuple[Array, KeyValue | None]:
        """The block's output and, where a cache is given, the input's keys and values."""
        h_BLD = reshard(self.norm(x_BLD), self.rules("batch", "length", None))
        attended, fresh = self.attention(h_BLD, angles, mask_BTS, cached)
        return x_BLD + self.mlp(h_BLD) + attended, None if cached is None else fresh
