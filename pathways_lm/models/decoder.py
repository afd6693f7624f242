"""PaLM's decoder: embed, blocks, norm, logits."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from pathways_lm.config import ModelConfig
from pathways_lm.layers.attention import KeyValue
from pathways_lm.layers.embed import Embedding
from pathways_lm.layers.mask import causal
from pathways_lm.layers.norm import LayerNorm
from pathways_lm.layers.position import rotary_angles
from pathways_lm.layers.stack import Stack
from pathways_lm.models.block import ParallelBlock
from pathways_lm.sharding import Rules, on_mesh

Params = dict[str, Any]


class Decoder(nnx.Module):
    """A causal language model (arXiv:2204.02311, section 2)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        self.embedding = Embedding(config.vocab_size, config.embed_dim, rngs, rules)
        self.blocks = Stack(
            lambda rngs: ParallelBlock(config, rngs, rules),
            config.num_layers,
            rngs,
            recompute=config.remat == "block",
            unroll=min(config.unroll, config.num_layers),
        )
        self.norm = LayerNorm(config.embed_dim, config.norm_epsilon, rules)
        self.config = config

    def __call__(self, tokens_BL: Array) -> Array:
        """Logits [B, L, V] of the token after each of `tokens_BL`."""
        positions = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
        x, _ = self.blocks(self.embedding.encode(tokens_BL), *self._context(positions, positions))
        return self.embedding.decode(self.norm(x))

    def extend(
        self, tokens_BL: Array, positions_BL: Array, cached: KeyValue, cached_positions_BS: Array
    ) -> tuple[Array, KeyValue]:
        """Logits after each of `tokens_BL`, which follow the cached positions.

        Args:
          tokens_BL, positions_BL: the new tokens and where they stand; position -1 is padding.
          cached: keys and values of every layer, each [layers, B, S, H].
          cached_positions_BS: where the cached tokens stand; -1 is an empty slot.

        Returns:
          Logits [B, L, V], and the keys and values of the new tokens, each [layers, B, L, H].
        """
        keys_at = jnp.concatenate([cached_positions_BS, positions_BL], axis=1)
        x = self.embedding.encode(tokens_BL)
        x, fresh = self.blocks(x, *self._context(positions_BL, keys_at), per_layer=cached)
        return self.embedding.decode(self.norm(x)), fresh

    def _context(self, positions_BT: Array, key_positions_BS: Array) -> tuple[tuple[Array, Array], Array]:
        """What every block shares: rotary angles and the mask."""
        angles = rotary_angles(positions_BT, self.config.head_dim, self.config.rope_base)
        return angles, causal(positions_BT, key_positions_BS)


class Model:
    """A decoder's layout, apart from its parameters, which are plain dictionaries of arrays."""

    def __init__(self, config: ModelConfig, rules: Rules):
        self.config = config
        self.rules = rules
        graphdefs = []

        def build(seed: Array) -> nnx.State:
            graphdef, state = nnx.split(Decoder(config, nnx.Rngs(params=jax.random.key(seed)), rules), nnx.Param)
            graphdefs.append(graphdef)
            return state

        self._build = build
        seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=rules())
        self.variables = jax.eval_shape(build, seed)
        self.graphdef = graphdefs[0]
        traced = nnx.to_pure_dict(self.variables)
        self.abstract: Params = jax.tree.map(lambda leaf: on_mesh(leaf, rules.mesh), traced)

    def initialise(self, seed: int) -> Params:
        """Parameters drawn from `seed`: the same numbers on every mesh."""
        assert isinstance(self.rules.mesh, Mesh)
        on_mesh = jax.device_put(jnp.uint32(seed), self.rules())
        return jax.jit(lambda seed: nnx.to_pure_dict(self._build(seed)))(on_mesh)

    def bind(self, params: Params) -> Decoder:
        """The decoder with these parameters, to be called inside a jitted function."""
        return nnx.merge(self.graphdef, nnx.State(params))
