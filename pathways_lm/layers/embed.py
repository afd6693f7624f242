"""Token embeddings, and the way back to tokens."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.contract import contract
from pathways_lm.kernels.cross_entropy import Projection
from pathways_lm.layers.mlp import ACTIVATIONS
from pathways_lm.layers.norm import Norm
from pathways_lm.layers.parameter import Init, zeros
from pathways_lm.mesh import platform
from pathways_lm.sharding import TOKENS, Rules


class Embedding(nnx.Module):
    """A table from tokens to the model dimension, which is the kernel of a tied head, too (PaLM sections 2 and 5.1)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        self.table = Init(config, rules).table(rngs, (config.vocab_size, config.embed_dim), ("vocab", "embed"), TOKENS)
        self.config = config
        self.rules = rules

    def encode(self, tokens_BL: Array) -> Array:
        """[B, L, D], cut as the residual stream."""
        # Whole along the model dimension first: a lookup straight into a cut one makes the TPU
        # compiler combine reductions over groups of several sizes, which it refuses.
        table_VD = reshard(self.table[...], self.rules.used("vocab", None))
        x_BLD = lookup(table_VD, tokens_BL, self.rules("batch", "length", None))
        return reshard(x_BLD, self.rules("batch", "residual_length", "residual"))

    def decode(self, x_BLD: Array) -> Projection:
        """The way to logits by the table itself."""
        return _projection(x_BLD, self.table[...], "vd", self.config, self.rules)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VD: Array, tokens_BL: Array, out: NamedSharding) -> Array:
    """The tokens' rows, [B, L, D], laid so."""
    if table_VD.dtype != jnp.bfloat16 or platform(out.mesh) != "cpu" or out.mesh.size > 1:
        return _rows(table_VD, tokens_BL, out)
    # XLA for CPUs looks numbers of 16 bits up in a copy of the whole table in fp32, but not plain bits.
    bits_BLD = _rows(jax.lax.bitcast_convert_type(table_VD, jnp.uint16), tokens_BL, out)
    return jax.lax.bitcast_convert_type(bits_BLD, table_VD.dtype)


def _rows(table_VD: Array, tokens_BL: Array, out: NamedSharding) -> Array:
    return table_VD.at[tokens_BL].get(out_sharding=out)


def _lookup_forward(table_VD: Array, tokens_BL: Array, out: NamedSharding) -> tuple[Array, tuple[Array, Array]]:
    return lookup(table_VD, tokens_BL, out), (table_VD, tokens_BL)


def _lookup_backward(out: NamedSharding, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    table_VD, tokens_BL = kept
    return jax.vjp(lambda table_VD: _rows(table_VD, tokens_BL, out), table_VD)[1](gradient)[0], None


lookup.defvjp(_lookup_forward, _lookup_backward)


class Head(nnx.Module):
    """Logits by a kernel of its own."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D, V = config.embed_dim, config.vocab_size
        self.kernel = Init(config, rules).kernel(rngs, (D, V), ("embed", "vocab"), D)
        self.config = config
        self.rules = rules

    def __call__(self, x_BLD: Array) -> Projection:
        """The way to logits."""
        return _projection(x_BLD, self.kernel[...], "dv", self.config, self.rules)


def _projection(x_BLD: Array, kernel: Array, dims: str, config: ModelConfig, rules: Rules) -> Projection:
    scale = config.embed_dim**-0.5 if config.scaled_logits else 1.0
    x_BLD = reshard(x_BLD * scale, rules("batch", "length", None))
    kernel = reshard(kernel, rules.used(*("vocab" if dim == "v" else None for dim in dims)))
    return Projection(x_BLD, kernel, None, dims, rules)


class MaskedHead(nnx.Module):
    """BERT's way to a masked token: dense, activation, norm, the embedding table, a bias (arXiv:1810.04805)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D = config.embed_dim
        # The output is cut along no dimension: it is small beside the logits, and normalised next.
        self.dense = Init(config, rules).kernel(rngs, (D, D), ("embed", "norm"), D)
        self.dense_bias = zeros((D,), ("norm",), rules)
        self.norm = Norm(config, rules)
        self.bias = zeros((config.vocab_size,), ("vocab",), rules)
        self.activation = ACTIVATIONS.get(config.activation, ACTIVATIONS["gelu"])
        self.rules = rules

    def __call__(self, x_BLD: Array, embedding: Embedding) -> Projection:
        """The way to logits."""
        whole = self.rules("batch", "length", None)
        x_BLD = reshard(x_BLD, whole)
        dense_DE = reshard(self.dense[...], self.rules.used(None, None))
        h_BLD = contract("bld,de->ble", x_BLD, dense_DE, whole)
        h_BLD = self.norm(self.activation(h_BLD + self.dense_bias[...]))
        return replace(embedding.decode(h_BLD), bias_V=self.bias[...])


class Pooler(nnx.Module):
    """tanh(x0 W + b) of the first position (BERT)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D = config.embed_dim
        self.kernel = Init(config, rules).kernel(rngs, (D, D), ("embed", "norm"), D, ("batch",))
        self.bias = zeros((D,), ("norm",), rules)
        self.rules = rules

    def __call__(self, x_BLD: Array) -> Array:
        """[B, D]"""
        # Summed, as a device may have none of the first tokens; laid on devices, they are still the first.
        first_L1 = jnp.arange(x_BLD.shape[1])[:, None] == 0
        first_BD = jnp.sum(jnp.where(first_L1, reshard(x_BLD, self.rules("batch", "length", None)), 0), axis=1)
        whole = self.rules("batch", None)
        kernel_DE = reshard(self.kernel[...], self.rules.used(None, None, tokens=("batch",)))
        y_BD = jnp.einsum("bd,de->be", first_BD, kernel_DE, out_sharding=whole)
        return jnp.tanh(y_BD + self.bias[...])


class Order(nnx.Module):
    """Two logits from the pooled position: whether a second sentence follows the first (BERT; Megatron's order)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D = config.embed_dim
        self.kernel = Init(config, rules).kernel(rngs, (D, 2), ("embed", "norm"), D, ("batch",))
        self.bias = zeros((2,), ("norm",), rules)
        self.rules = rules

    def __call__(self, pooled_BD: Array) -> Array:
        """[B, 2]"""
        kernel_D2 = reshard(self.kernel[...], self.rules.used(None, None, tokens=("batch",)))
        return jnp.einsum("bd,de->be", pooled_BD, kernel_D2, out_sharding=self.rules("batch", None)) + self.bias[...]
