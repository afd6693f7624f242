"""Multi-query self-attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.attention import multi_query_attention
from pathways_lm.layers.parameter import normal
from pathways_lm.layers.position import rotate
from pathways_lm.sharding import Rules

KeyValue = tuple[Array, Array]


class Attention(nnx.Module):
    """Queries [heads, head_dim], one key and one value [head_dim], rotary positions, no biases (PaLM section 2).

    Kernels are drawn from N(0, 1 / inputs) (section 5.1).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D, N, H = config.embed_dim, config.num_heads, config.head_dim
        self.query = normal(rngs, (D, N, H), ("embed", "heads", "head_dim"), D**-0.5, rules)
        self.key = normal(rngs, (D, H), ("embed", "head_dim"), D**-0.5, rules)
        self.value = normal(rngs, (D, H), ("embed", "head_dim"), D**-0.5, rules)
        self.out = normal(rngs, (N, H, D), ("heads", "head_dim", "embed"), (N * H) ** -0.5, rules)
        self.recompute = config.remat == "attention"
        self.rules = rules

    def __call__(
        self, h_BLD: Array, angles: tuple[Array, Array], mask_BTS: Array, cached: KeyValue | None = None
    ) -> tuple[Array, KeyValue]:
        """Attends to the cached positions, if any, then to the given ones.

        Args:
          h_BLD: normalised input, whole along D.
          angles: of `rotary_angles` at the input's positions.
          mask_BTS: S counts cached positions first.
          cached: keys and values [B, S - T, H].

        Returns:
          The output, cut as the residual stream, and the input's own keys and values [B, T, H].
        """
        rules = self.rules
        whole = rules("batch", "length", None)
        query_DNH = reshard(self.query[...], rules(None, "heads", None))
        q = jnp.einsum("bld,dnh->blnh", h_BLD, query_DNH, out_sharding=rules("batch", "length", "heads", None))
        k = jnp.einsum("bld,dh->blh", h_BLD, reshard(self.key[...], rules(None, None)), out_sharding=whole)
        v = jnp.einsum("bld,dh->blh", h_BLD, reshard(self.value[...], rules(None, None)), out_sharding=whole)
        q = rotate(q, angles)
        k = rotate(k[:, :, None, :], angles)[:, :, 0, :]
        keys, values = k, v
        if cached is not None:
            keys = jnp.concatenate([cached[0].astype(k.dtype), k], axis=1)
            values = jnp.concatenate([cached[1].astype(v.dtype), v], axis=1)
        attend = jax.checkpoint(multi_query_attention, static_argnums=4) if self.recompute else multi_query_attention
        a = attend(q, keys, values, mask_BTS, rules)
        out_NHD = reshard(self.out[...], rules("heads", None, None))
        y = jnp.einsum("blnh,nhd->bld", a, out_NHD, out_sharding=rules("batch", "length", "residual"))
        return y, (k, v)
