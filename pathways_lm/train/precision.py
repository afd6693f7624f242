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


def stochastic_round(x: Array, key: Array) -> Array:
    """fp32 to bf16, to one of the two neighbours, so that the expected value is x. What is not finite stays.

    To the nearest, an update below half of a parameter's last place would be lost each time (arXiv:2010.06192,
    section 4).
    """
    draws = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=jax.typeof(x).sharding)
    # bf16 is fp32's upper half: what the lower half and the draw carry over is the chance to go up.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + draws.astype(jnp.uint32)
    either = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), either, x).astype(jnp.bfloat16)
