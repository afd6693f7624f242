"""Parameters: drawn by the model's scheme, ones or zeros, already in their place on the mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.product import Turned
from pathways_lm.sharding import TOKENS, Rules

# The standard deviation of N(0, 1) cut off at two deviations.
TRUNCATED_STD = 0.87962566103423978


@dataclass(frozen=True)
class Init:
    """How a model draws its kernels and embeddings.

    `fan_in`: N(0, scale / inputs), embeddings N(0, 1) (PaLM section 5.1). `truncated_fan_in`: the same deviation, cut
    off at two (Switch section 2.4). `t5`: as `fan_in`, queries N(0, scale / (inputs head_dim)), which stands for the
    division of the scores. `megatron`: N(0, std^2) for all, kernels that end a residual branch divided by
    sqrt(2 layers) (Megatron-LM section 4).
    """

    config: ModelConfig
    rules: Rules

    def kernel(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        inputs: int,
        tokens: tuple[str, ...] = TOKENS,
    ) -> nnx.Param:
        """An fp32 kernel whose outputs sum over `inputs` numbers. `dims` and `tokens` are for the rules."""
        return self._draw(rngs, shape, dims, self._std(inputs), tokens)

    def query(self, rngs: nnx.Rngs, shape: tuple[int, ...], dims: tuple[str, ...], inputs: int) -> nnx.Param:
        """A kernel that makes queries."""
        folded = self.config.head_dim if self.config.init == "t5" else 1
        return self._draw(rngs, shape, dims, self._std(inputs * folded), TOKENS)

    def residual(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, ...],
        dims: tuple[str, ...],
        inputs: int,
        tokens: tuple[str, ...] = TOKENS,
    ) -> nnx.Param:
        """A kernel whose outputs are added to the residual stream."""
        depth = 2 * self.config.num_layers if self.config.init == "megatron" else 1
        return self._draw(rngs, shape, dims, self._std(inputs) * depth**-0.5, tokens)

    def table(
        self, rngs: nnx.Rngs, shape: tuple[int, ...], dims: tuple[str, ...], tokens: tuple[str, ...] = ()
    ) -> nnx.Param:
        """An embedding table."""
        std = self.config.init_std if self.config.init == "megatron" else 1.0
        return normal(rngs, shape, dims, std, self.rules, tokens)

    def _std(self, inputs: int) -> float:
        if self.config.init == "megatron":
            return self.config.init_std
        return (self.config.init_scale / inputs) ** 0.5

    def _draw(
        self, rngs: nnx.Rngs, shape: tuple[int, ...], dims: tuple[str, ...], std: float, tokens: tuple[str, ...]
    ) -> nnx.Param:
        if self.config.init != "truncated_fan_in":
            return normal(rngs, shape, dims, std, self.rules, tokens)
        placed = self.rules(*dims)
        value = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32, out_sharding=placed)
        return nnx.Param(value * (std / TRUNCATED_STD), dims=dims, std=std, tokens=tokens)


def normal(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    std: float,
    rules: Rules,
    tokens: tuple[str, ...] = (),
) -> nnx.Param:
    """An fp32 parameter from N(0, std^2).

    Args:
      dims: names its dimensions for the sharding rules.
      tokens: for a parameter that enters matrix products or lookups only, as `Rules.used` lays it: the dimensions of
        the activations over which its gradient sums.
    """
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=rules(*dims))
    return nnx.Param(value, dims=dims, std=std, tokens=tokens)


def ones(shape: tuple[int, ...], dims: tuple[str, ...], rules: Rules) -> nnx.Param:
    """An fp32 parameter of ones."""
    return nnx.Param(_constant(1, shape, rules(*dims)), dims=dims, std=0.0, tokens=())


def zeros(shape: tuple[int, ...], dims: tuple[str, ...], rules: Rules) -> nnx.Param:
    """An fp32 parameter of zeros."""
    return nnx.Param(_constant(0, shape, rules(*dims)), dims=dims, std=0.0, tokens=())


def _constant(value: float, shape: tuple[int, ...], placed: NamedSharding) -> Array:
    # From JAX 0.12 on, `out_sharding` of a constant is lost under `vmap` on a mesh without devices.
    return reshard(jnp.full(shape, value, jnp.float32), placed)


def used(kernel: nnx.Param, placed: NamedSharding) -> Array | Turned:
    """A kernel as products read it, laid so on the mesh. One that is turned is on a single device."""
    value = kernel.get_value()
    return value if isinstance(value, Turned) else reshard(value, placed)
