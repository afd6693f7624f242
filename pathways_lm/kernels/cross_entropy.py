"""Softmax cross-entropy over a vocabulary that may be cut along the mesh."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits_BLV: Array, targets_BL: Array) -> tuple[Array, Array]:
    """Negative log-likelihood and log Z of each token, both [B, L] in fp32 nats.

    The target's logit is found by comparison, not by indexing: an index into a dimension that is
    cut over devices would gather the logits.
    """
    logits_BLV = logits_BLV.astype(jnp.float32)
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    columns_BLV = jax.lax.broadcasted_iota(
        targets_BL.dtype, logits_BLV.shape, 2, out_sharding=jax.typeof(logits_BLV).sharding
    )
    hit_BLV = columns_BLV == targets_BL[:, :, None]
    target_logit_BL = jnp.sum(jnp.where(hit_BLV, logits_BLV, 0.0), axis=-1)
    return log_z_BL - target_logit_BL, log_z_BL
