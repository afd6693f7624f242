"""Attention, to the own tokens or to those of an encoder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.attention import Parts, attention, attention_weights, spread, weighted_values
from pathways_lm.kernels.cudnn import cudnn_attention
from pathways_lm.kernels.product import Turned, product
from pathways_lm.kernels.splash import splash_attention
from pathways_lm.kernels.triton import triton_attention
from pathways_lm.kernels.zigzag import stand
from pathways_lm.layers.again import computed_again
from pathways_lm.layers.dropout import weights_dropout
from pathways_lm.layers.parameter import Init, used, zeros
from pathways_lm.layers.position import rotate
from pathways_lm.layers.ring import ring_attention
from pathways_lm.layers.tiles import View
from pathways_lm.sharding import Rules

KeyValue = tuple[Any, Any]
"""Keys and values: arrays [B, S, K, H], and in a cache [B, K, S, H], arrays or `Codes`."""


class Codes(NamedTuple):
    """Keys or values of a cache in eight bits."""

    codes_BKSH: Array
    """int8"""
    unit_BKS1: Array
    """fp32: what a code of 1 stands for, of each position and head."""


def coded(x_BKSH: Array) -> Codes:
    """Each position's and head's numbers, rounded to 127 steps up to the largest of them."""
    x_BKSH = x_BKSH.astype(jnp.float32)
    unit_BKS1 = jnp.max(jnp.abs(x_BKSH), axis=-1, keepdims=True) / 127
    codes_BKSH = jnp.round(x_BKSH / jnp.where(unit_BKS1 > 0, unit_BKS1, 1))
    return Codes(codes_BKSH.astype(jnp.int8), unit_BKS1)


def decoded(kept: Array | Codes, dtype: jnp.dtype) -> Array:
    """What a cache keeps, as it is computed with."""
    if isinstance(kept, Codes):
        return (kept.codes_BKSH.astype(jnp.float32) * kept.unit_BKS1).astype(dtype)
    return kept.astype(dtype)


Store = Callable[[KeyValue | None, KeyValue | None], KeyValue]
"""What a cache has of a layer, and the keys and values of tokens -> the cache with these in their slots."""


class Sight(NamedTuple):
    """Who sees whom, and at what distance."""

    mask_BTS: Array | None
    """True where a query may look; S counts cached positions first and is in the order of the text. B may be 1."""
    angles: tuple[Array, Array] | None = None
    """Rotary angles at the queries' positions."""
    bias_BTSN: Array | None = None
    """Added to the scores, cut along heads. B may be 1."""
    view: View | None = None
    """In place of mask and bias, for attention that never holds length x length."""


class Attended(NamedTuple):
    """What an attention layer gives."""

    y_BLD: Array
    """The output, cut as the residual stream."""
    fresh: KeyValue | None
    """The given tokens' own keys and values, [B, T, K, H] each, or the cache they were stored in; None where a memory's
    were given."""
    weights_BNTS: Array | None
    """The attention weights, where asked for."""


def kv_heads(config: ModelConfig, rules: Rules) -> str | None:
    """How the heads of keys and values are cut: as those of queries, or, where they are too few, not at all."""
    heads = config.num_kv_heads
    return "heads" if heads > 1 and heads % rules.parts("heads") == 0 else None


class Attention(nnx.Module):
    """`num_heads` queries, `num_kv_heads` keys and values, with biases where the config has them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        init = Init(config, rules)
        self.kv_heads = kv_heads(config, rules)
        self.query = init.query(rngs, (D, N, H), ("embed", "heads", "head_dim"), D)
        kv_dims = ("embed", self.kv_heads or "norm", "head_dim")
        self.key = init.kernel(rngs, (D, K, H), kv_dims, D)
        self.value = init.kernel(rngs, (D, K, H), kv_dims, D)
        self.out = init.residual(rngs, (N, H, D), ("heads", "head_dim", "embed"), N * H)
        if config.bias:
            self.query_bias = zeros((N, H), ("heads", "head_dim"), rules)
            self.key_bias = zeros((K, H), kv_dims[1:], rules)
            self.value_bias = zeros((K, H), kv_dims[1:], rules)
            self.out_bias = zeros((D,), ("norm",), rules)
        self.config = config
        self.rules = rules

    def __call__(
        self,
        h_BTD: Array,
        sight: Sight,
        memory_BSD: Array | None = None,
        cached: KeyValue | None = None,
        key: Array | None = None,
        show_weights: bool = False,
        remembered: KeyValue | None = None,
        store: Store | None = None,
    ) -> Attended:
        """Attends to the memory if there is one, else to the cached positions, if any, and then to the given ones.

        Args:
          h_BTD: normalised input, whole along D.
          memory_BSD: an encoder's output, whole along D.
          cached: keys and values [B, K, S - T, H].
          key: for dropout of the weights.
          show_weights: also give the weights.
          remembered: the memory's keys and values [B, K, S, H] from before, in place of the memory.
          store: puts the given tokens' keys and values among those cached, which are attended to then.
        """
        config, rules = self.config, self.rules
        source_BSD = h_BTD if memory_BSD is None else memory_BSD
        k_BSKH = v_BSKH = None
        if self.key.get_value() is None:
            q_BTNH, k_BSKH, v_BSKH = self._project_jointly(h_BTD)
        else:
            q_BTNH = self._project(h_BTD, "query", "heads")
            if remembered is None:
                k_BSKH = self._project(source_BSD, "key", self.kv_heads)
                v_BSKH = self._project(source_BSD, "value", self.kv_heads)
        if sight.angles is not None:
            assert k_BSKH is not None
            q_BTNH, k_BSKH = rotate(q_BTNH, sight.angles), rotate(k_BSKH, sight.angles)
        fresh = None if remembered is not None else (k_BSKH, v_BSKH)
        before = cached if remembered is None else remembered
        if store is not None:
            before = fresh = store(cached, fresh)
            k_BSKH = v_BSKH = None
            if not isinstance(before[0], Codes):
                # To convert a whole cache for one query would take longer than to look at it.
                q_BTNH = q_BTNH.astype(jnp.promote_types(q_BTNH.dtype, before[0].dtype))
        kept = (None, None) if before is None else tuple(decoded(each, q_BTNH.dtype) for each in before)
        keys, values = (kept[0], k_BSKH), (kept[1], v_BSKH)

        def whole(kv_BSKH: Array | None) -> Array | None:
            if kv_BSKH is None:
                return None
            return stand(reshard(kv_BSKH, rules("batch", None, self.kv_heads, None)), rules)

        def weigh(q: Array, keys: Parts, sight: Sight) -> Array:
            assert sight.mask_BTS is not None
            cached, fresh = keys[0], whole(keys[1])
            mask, bias = sight.mask_BTS, sight.bias_BTSN
            return attention_weights(q, fresh, mask, bias, rules, config.scaled_attention, cached)

        def attend(q: Array, keys: Parts, values: Parts, sight: Sight, key: Array | None) -> Array:
            if key is None or not config.dropout:
                assert sight.mask_BTS is not None
                keys, values = (keys[0], whole(keys[1])), (values[0], whole(values[1]))
                return attention(q, keys, values, sight.mask_BTS, sight.bias_BTSN, rules, config.scaled_attention)
            weights_BKTGS = weights_dropout(weigh(q, keys, sight), config.dropout, key, rules)
            return weighted_values(weights_BKTGS, whole(values[1]), rules, values[0])

        if sight.view is not None:
            # The layer keeps nothing larger than its queries: there is nothing to gain from `remat`.
            assert k_BSKH is not None and v_BSKH is not None
            fresh = k_BSKH, v_BSKH = spread(k_BSKH, "length", rules), spread(v_BSKH, "length", rules)
            a_BTNH = self._without_scores(q_BTNH, k_BSKH, v_BSKH, sight.view)
        else:
            attend = computed_again(attend) if config.remat == "attention" else attend
            a_BTNH = attend(q_BTNH, keys, values, sight, key).astype(h_BTD.dtype)
        out_NHD = used(self.out, rules.used("heads", None, None))
        out = rules.partial("batch", "length", None, over="heads")
        if store is None or isinstance(out_NHD, Turned):
            y_BTD = product("blnh,nhd->bld", a_BTNH, out_NHD, out, config.matmuls)
        else:
            # Of single tokens XLA would turn the kernel around to sum over heads last, at every step.
            N, H, D = out_NHD.shape
            out_ED = jnp.reshape(out_NHD, (N * H, D), out_sharding=rules.used("heads", None))
            a_BTE = jnp.reshape(a_BTNH, (*a_BTNH.shape[:2], N * H), out_sharding=rules("batch", "length", "heads"))
            y_BTD = product("ble,ed->bld", a_BTE, out_ED, out, config.matmuls)
        y_BTD = reshard(y_BTD, rules("batch", "residual_length", "residual"))
        if config.bias:
            y_BTD = y_BTD + reshard(self.out_bias[...], rules("residual"))
        weights = _by_head(weigh(q_BTNH, keys, sight), rules) if show_weights else None
        return Attended(y_BTD, fresh, weights)

    def _without_scores(self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, view: View) -> Array:
        """By the view's attention."""
        rules, scaled = self.rules, self.config.scaled_attention
        if view.by == "splash":
            segments = None
            if view.queries.segments_BL is not None and view.keys.segments_BL is not None:
                segments = view.queries.segments_BL, view.keys.segments_BL
            return splash_attention(q_BTNH, k_BSKH, v_BSKH, segments, view.causal, view.window, rules, scaled)
        if view.by == "triton":
            documents_BT = view.queries.segments_BL
            return triton_attention(q_BTNH, k_BSKH, v_BSKH, documents_BT, view.causal, rules, scaled)
        if view.by == "cudnn":
            return cudnn_attention(q_BTNH, k_BSKH, v_BSKH, view.causal, view.window, rules, scaled)
        table_RN, view = view.table_RN, replace(view, table_RN=None)
        return ring_attention(q_BTNH, k_BSKH, v_BSKH, table_RN, view, rules, scaled)

    def _project(self, x_BLD: Array, name: str, heads: str | None) -> Array:
        """[B, L, heads, H]"""
        rules = self.rules
        kernel_DNH = used(getattr(self, name), rules.used(None, heads, None))
        out = rules("batch", "length", heads, None)
        return self._biased(product("bld,dnh->blnh", x_BLD, kernel_DNH, out, self.config.matmuls), name)

    def _project_jointly(self, x_BLD: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values by a kernel that `join` made."""
        rules, N, K = self.rules, self.config.num_heads, self.config.num_kv_heads
        whole = rules("batch", "length", None, None)
        qkv = product("bld,dnh->blnh", x_BLD, self.query.get_value(), whole, "")
        q_BLNH, k_BLKH, v_BLKH = (
            reshard(self._biased(part, name), rules("batch", "length", heads, None))
            for part, name, heads in zip(
                jnp.split(qkv, (N, N + K), axis=2),
                ("query", "key", "value"),
                ("heads", self.kv_heads, self.kv_heads),
                strict=True,
            )
        )
        return q_BLNH, k_BLKH, v_BLKH

    def _biased(self, y: Array, name: str) -> Array:
        return y + getattr(self, f"{name}_bias")[...] if self.config.bias else y


def join(attention: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an attention to the own tokens whose kernels are `Turned`, with the three that read them in one:
    products with few rows wait for each other less often."""
    kernels = [attention[name].kernel for name in ("query", "key", "value")]
    return {**attention, "query": Turned(jnp.concatenate(kernels, axis=0)), "key": None, "value": None}


def _by_head(weights_BKTGS: Array, rules: Rules) -> Array:
    """[B, N, T, S], whole along heads: to be looked at."""
    B, K, T, G, S = weights_BKTGS.shape
    whole = jax.sharding.reshard(weights_BKTGS, rules("batch", None, None, None, None))
    return jnp.reshape(jnp.swapaxes(whole, 2, 3), (B, K * G, T, S))
