"""The types of parameters, arithmetic and reductions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.models.model import Params, cast

FP32, BF16, FP16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)


@dataclass(frozen=True)
class Precision:
    """Matrix products are done in `compute`; gradients are added, and updates computed, in fp32.

    Norms, softmax, rotary angles and the loss are fp32 inside the layers whatever this says.
    """

    compute: jnp.dtype
    stored: jnp.dtype = FP32
    """Of the parameters. Where it is not fp32, updates are rounded to it by chance (`stochastic_round`)."""
    scaled: bool = False
    """Whether the loss is scaled, so that small gradients are not lost."""

    def cast(self, params: Params) -> Params:
        """The parameters as the arithmetic sees them. What is used in fp32 stays so: norms and routers."""
        return cast(params, self.compute)


POLICIES = {
    "fp32": Precision(FP32),
    "bf16": Precision(BF16),
    "bf16_pure": Precision(BF16, stored=BF16),
    "fp16": Precision(FP16, scaled=True),
}


def stochastic_round(value: Array, dtype: jnp.dtype, key: Array) -> Array:
    """fp32 numbers in `dtype`, bfloat16, each rounded up or down with probabilities that keep its mean.

    Without, an update below half of a parameter's last place would be lost each time (arXiv:2010.06192, section 4).
    """
    if value.dtype == dtype:
        return value
    chance = jax.random.bits(key, value.shape, jnp.uint32, out_sharding=jax.typeof(value).sharding) >> 16
    raised = jax.lax.bitcast_convert_type(value, jnp.uint32) + chance
    cut = jax.lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32)
    return cut.astype(dtype)
