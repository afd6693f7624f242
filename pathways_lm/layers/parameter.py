"""Parameters: drawn from a normal distribution, or ones, already in their place on the mesh."""

import jax
import jax.numpy as jnp
from flax import nnx

from pathways_lm.sharding import Rules


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], dims: tuple[str, ...], std: float, rules: Rules) -> nnx.Param:
    """An fp32 parameter from N(0, std^2). `dims` names its dimensions for the sharding rules."""
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=rules(*dims))
    return nnx.Param(value, dims=dims, std=std)


def ones(shape: tuple[int, ...], dims: tuple[str, ...], rules: Rules) -> nnx.Param:
    """An fp32 parameter of ones."""
    return nnx.Param(jnp.ones(shape, jnp.float32, out_sharding=rules(*dims)), dims=dims, std=0.0)
