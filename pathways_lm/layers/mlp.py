"""The feed-forward layer."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.product import Turned, product
from pathways_lm.layers.again import computed_again
from pathways_lm.layers.dropout import dropout
from pathways_lm.layers.parameter import Init, used, zeros
from pathways_lm.sharding import Rules


@jax.custom_jvp
def exact_gelu(x: Array) -> Array:
    """x times the normal distribution's share below x (arXiv:1606.08415, section 2)."""
    return jax.nn.gelu(x, approximate=False)


@exact_gelu.defjvp
def _exact_gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Written out, as JAX 0.12 cannot differentiate erf inside of `shard_map`."""
    (x,), (tangent,) = primals, tangents
    share = 0.5 * jax.lax.erfc(-x * math.sqrt(0.5))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * share, (share + x * density) * tangent


GATES: Mapping[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": partial(jax.nn.gelu, approximate=True),
}
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": exact_gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(gate: str, x: Array, y: Array) -> Array:
    """f(x) * y. For the backward pass only these two are kept, and f is computed again."""
    return GATES[gate](x) * y


def _gated_forward(gate: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated(gate, x, y), (x, y)


def _gated_backward(gate: str, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # Otherwise XLA could find what the forward pass computed, and keep it, where both are in one computation.
    x, y = jax.lax.optimization_barrier(kept)
    value, pull = jax.vjp(GATES[gate], x)
    return pull(gradient * y)[0], gradient * value


gated.defvjp(_gated_forward, _gated_backward)


class MLP(nnx.Module):
    """f(x W) W2, or for `swiglu` and `geglu` (f(x W) * x V) W2 (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        D, F = config.embed_dim, config.mlp_dim
        init = Init(config, rules)
        self.gated = config.activation in GATES
        if self.gated:
            self.gate = init.kernel(rngs, (D, F), ("embed", "mlp"), D)
        self.up = init.kernel(rngs, (D, F), ("embed", "mlp"), D)
        self.down = init.residual(rngs, (F, D), ("mlp", "embed"), F)
        if config.bias:
            if self.gated:
                self.gate_bias = zeros((F,), ("mlp",), rules)
            self.up_bias = zeros((F,), ("mlp",), rules)
            self.down_bias = zeros((D,), ("norm",), rules)
        self.config = config
        self.rules = rules

    @jax.named_scope("mlp")
    def __call__(self, h_BLD: Array, key: Array | None = None) -> Array:
        """Takes an input whole along D; gives an output cut as the residual stream."""
        config, rules = self.config, self.rules
        down_FD = used(self.down, rules.used("mlp", None))
        # Added over devices and cut as the residual stream in one exchange; written so, its gradient is gathered once.
        out = rules.partial("batch", "length", None, over="mlp")

        def finish(inputs: list[Array], down_FD: Array | Turned, key: Array | None) -> Array:
            activate = partial(gated, config.activation) if self.gated else ACTIVATIONS[config.activation]
            hidden_BLF = dropout(activate(*inputs), config.hidden_dropout, key, rules)
            return product("blf,fd->bld", hidden_BLF, down_FD, out, config.matmuls)

        # What the hidden units are made of is kept for the backward pass, and they are not.
        inputs = [self._into(h_BLD, name) for name in (("gate", "up") if self.gated else ("up",))]
        y_BLD = computed_again(finish, apart=False)(inputs, down_FD, key)
        y_BLD = reshard(y_BLD, rules("batch", "residual_length", "residual"))
        return y_BLD + reshard(self.down_bias[...], rules("residual")) if config.bias else y_BLD

    def _into(self, h_BLD: Array, name: str) -> Array:
        rules = self.rules
        kernel_DF = used(getattr(self, name), rules.used(None, "mlp"))
        hidden_BLF = product("bld,df->blf", h_BLD, kernel_DF, rules("batch", "length", "mlp"), self.config.matmuls)
        return hidden_BLF + getattr(self, f"{name}_bias")[...] if self.config.bias else hidden_BLF
