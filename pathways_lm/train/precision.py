"""The types of parameters, arithmetic and reductions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.models.model import Params


@dataclass(frozen=True)
class Precision:
    """Parameters, gradients and optimizer are fp32; matrix products are done in `compute`.

    Norms, softmax, rotary angles and the loss are fp32 inside the layers whatever this says.
    """

    compute: jnp.dtype

    def cast(self, params: Params) -> Params:
        """The parameters as the arithmetic sees them. What is used in fp32 stays so: norms and routers."""

        def cast_one(path: tuple[jax.tree_util.DictKey, ...], value: Array) -> Array:
            return value if path[-1].key in ("scale", "bias", "router") else value.astype(self.compute)

        return jax.tree_util.tree_map_with_path(cast_one, params)


POLICIES = {"fp32": Precision(jnp.dtype(jnp.float32)), "bf16": Precision(jnp.dtype(jnp.bfloat16))}
