"""Next-token loss as sums over tokens, to be divided once at the very end."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pathways_lm.kernels.cross_entropy import cross_entropy
from pathways_lm.models.decoder import Model, Params
from pathways_lm.train.precision import Precision

PADDING = 0


class Sums(NamedTuple):
    """Sums over the tokens of a batch, fp32 scalars. Divide by `tokens` only when all parts are added."""

    nll: Array
    """Negative log-likelihood, nats."""
    log_z_squared: Array
    tokens: Array


def next_token_sums(model: Model, precision: Precision, params: Params, tokens_BL: Array) -> Sums:
    """Scores every token but padding, each from those before it in its sequence.

    The first token is predicted from the padding token, which stands for "beginning", as in
    seqio's decoder features.
    """
    beginning = jnp.zeros_like(tokens_BL[:, :1])
    inputs_BL = jnp.concatenate([beginning, tokens_BL[:, :-1]], axis=1)
    logits_BLV = model.bind(precision.cast(params))(inputs_BL)
    nll_BL, log_z_BL = cross_entropy(logits_BLV, tokens_BL)
    weight_BL = (tokens_BL != PADDING).astype(jnp.float32)
    return Sums(
        nll=jnp.sum(nll_BL * weight_BL),
        log_z_squared=jnp.sum(jnp.square(log_z_BL) * weight_BL),
        tokens=jnp.sum(weight_BL),
    )
