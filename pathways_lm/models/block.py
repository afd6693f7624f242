"""The transformer block."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.layers.attention import Attention, KeyValue, Sight, Store
from pathways_lm.layers.dropout import dropout, site
from pathways_lm.layers.mlp import MLP
from pathways_lm.layers.moe.layer import MoE
from pathways_lm.layers.moe.losses import RouterSums
from pathways_lm.layers.norm import Norm
from pathways_lm.layers.position import RelativeBias
from pathways_lm.sharding import Rules

ATTENTION, CROSS, HIDDEN, WEIGHTS, CROSS_WEIGHTS, MLP_OUT, EXTRA, EXTRA_HIDDEN = range(8)
"""The places in a block that draw from its key."""


class Scene(NamedTuple):
    """What all blocks of a tower share."""

    sight: Sight
    valid_BL: Array | None = None
    """False for padding, which is not routed to experts. None: all are tokens."""
    buckets_BTS: Array | None = None
    """Relative positions, for blocks with tables of their own."""
    memory_BSD: Array | None = None
    """An encoder's output, whole along D, for a decoder's blocks to look at."""
    memory_sight: Sight | None = None
    store: Store | None = None
    """Puts new keys and values into the cache, before it is attended to."""
    show: bool = False
    """Give the attention weights and each token's experts, too."""


class Own(NamedTuple):
    """What each block has for itself."""

    cached: KeyValue | None = None
    """Keys and values [B, K, S, H] of the tokens before."""
    remembered: KeyValue | None = None
    """Keys and values [B, K, S, H] of the encoder's output, from `Out.remembered`."""
    key: Array | None = None
    """For dropout and routers; None in evaluation."""


class Out(NamedTuple):
    """What a block gives beside its output."""

    fresh: KeyValue | None = None
    """The input's keys and values, where there is a cache."""
    routing: RouterSums | None = None
    remembered: KeyValue | None = None
    """The encoder's output's keys and values, where there is a cache."""
    weights_BNTS: Array | None = None
    cross_weights_BNTS: Array | None = None
    gates_BLE: Array | None = None
    """How much of each expert a token was given, where shown."""


class Block(nnx.Module):
    """Attention and MLP around the residual stream.

    parallel:  y = x + MLP(N(x)) + Attention(N(x)), one norm for both (PaLM section 2)
    pre_norm:  x = x + Attention(N(x)), then x + MLP(N(x)) (GPT-2, T5)
    post_norm: x = N(x + Attention(x)), then N(x + MLP(x)) (BERT)

    With `cross`, an attention to the encoder's output stands between the two. With `sparse`, experts take the MLP's
    place, and for ST-MoE one more dense MLP follows.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules, cross: bool = False, sparse: bool = False):
        self.attention = Attention(config, rngs, rules)
        if config.block == "parallel":
            self.norm = Norm(config, rules)
        else:
            self.attention_norm = Norm(config, rules)
            self.mlp_norm = Norm(config, rules)
        if config.positions == "relative_per_layer":
            self.relative_bias = RelativeBias(config, rngs, rules)
        if cross:
            self.cross = Attention(config, rngs, rules)
            self.cross_norm = Norm(config, rules)
        if sparse:
            self.moe = MoE(config, rngs, rules)
        else:
            self.mlp = MLP(config, rngs, rules)
        self.extended = sparse and config.moe.extra_dense
        if self.extended:
            self.extra = MLP(config, rngs, rules)
            self.extra_norm = Norm(config, rules)
        self.is_cross = cross
        self.sparse = sparse
        self.config = config
        self.rules = rules

    def __call__(self, x_BLD: Array, scene: Scene, own: Own) -> tuple[Array, Out]:
        """Applies the block to the residual stream."""
        if self.config.block == "parallel":
            return self._parallel(x_BLD, scene, own)
        shown: dict[str, Any] = {}

        @jax.named_scope("attention")
        def attend(h_BLD: Array) -> Array:
            key = site(own.key, WEIGHTS)
            seen = self.attention(
                h_BLD, self._sight(scene), None, own.cached, key, show_weights=scene.show, store=scene.store
            )
            shown.update(fresh=None if own.cached is None else seen.fresh, weights_BNTS=seen.weights_BNTS)
            return dropout(seen.y_BLD, self.config.dropout, site(own.key, ATTENTION), self.rules)

        @jax.named_scope("cross_attention")
        def look(h_BLD: Array) -> Array:
            assert scene.memory_sight is not None
            memory_BSD = None
            if own.remembered is None:
                assert scene.memory_BSD is not None
                # It lies so already. From JAX 0.12 on, gradients of what a scan closes over must be told how it lies.
                memory_BSD = reshard(scene.memory_BSD, self.rules("batch", "length", None))
            key = site(own.key, CROSS_WEIGHTS)
            seen = self.cross(
                h_BLD, scene.memory_sight, memory_BSD, None, key, show_weights=scene.show, remembered=own.remembered
            )
            shown.update(cross_weights_BNTS=seen.weights_BNTS)
            shown.update(remembered=None if own.cached is None else seen.fresh)
            return dropout(seen.y_BLD, self.config.dropout, site(own.key, CROSS), self.rules)

        def feed(h_BLD: Array) -> Array:
            y_BLD, given = self._feed(h_BLD, scene, own)
            shown.update(given)
            return dropout(y_BLD, self.config.dropout, site(own.key, MLP_OUT), self.rules)

        def feed_more(h_BLD: Array) -> Array:
            return dropout(
                self.extra(h_BLD, site(own.key, EXTRA_HIDDEN)), self.config.dropout, site(own.key, EXTRA), self.rules
            )

        x_BLD = self._residual(x_BLD, self.attention_norm, attend)
        if self.is_cross:
            x_BLD = self._residual(x_BLD, self.cross_norm, look)
        x_BLD = self._residual(x_BLD, self.mlp_norm, feed)
        if self.extended:
            x_BLD = self._residual(x_BLD, self.extra_norm, feed_more)
        return x_BLD, Out(**shown)

    def _residual(self, x_BLD: Array, norm: Norm, branch: Any) -> Array:
        whole = self.rules("batch", "length", None)
        if self.config.block == "pre_norm":
            return x_BLD + branch(reshard(norm(x_BLD), whole))
        return norm(x_BLD + branch(reshard(x_BLD, whole)))

    def _parallel(self, x_BLD: Array, scene: Scene, own: Own) -> tuple[Array, Out]:
        config = self.config
        h_BLD = reshard(self.norm(x_BLD), self.rules("batch", "length", None))
        key = site(own.key, WEIGHTS)
        with jax.named_scope("attention"):
            seen = self.attention(
                h_BLD, self._sight(scene), None, own.cached, key, show_weights=scene.show, store=scene.store
            )
        fed_BLD, given = self._feed(h_BLD, scene, own)
        fed_BLD = dropout(fed_BLD, config.dropout, site(own.key, MLP_OUT), self.rules)
        attended_BLD = dropout(seen.y_BLD, config.dropout, site(own.key, ATTENTION), self.rules)
        fresh = None if own.cached is None else seen.fresh
        return x_BLD + fed_BLD + attended_BLD, Out(fresh=fresh, weights_BNTS=seen.weights_BNTS, **given)

    def _sight(self, scene: Scene) -> Sight:
        if self.config.positions != "relative_per_layer":
            return scene.sight
        if scene.sight.view is not None:
            view = replace(scene.sight.view, table_RN=self.relative_bias.table[...])
            return scene.sight._replace(view=view)
        assert scene.buckets_BTS is not None
        return scene.sight._replace(bias_BTSN=self.relative_bias(scene.buckets_BTS))

    def _feed(self, h_BLD: Array, scene: Scene, own: Own) -> tuple[Array, dict[str, Any]]:
        """The MLP's or the experts' output, and what the experts tell."""
        if not self.sparse:
            return self.mlp(h_BLD, site(own.key, HIDDEN)), {}
        y_BLD, routing, gates_BLE = self.moe(h_BLD, scene.valid_BL, site(own.key, HIDDEN))
        return y_BLD, {"routing": routing, "gates_BLE": gates_BLE if scene.show else None}
