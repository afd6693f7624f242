"""Losses as sums over tokens, to be divided once at the very end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.config import MoEConfig
from pathways_lm.kernels.cross_entropy import Projection, linear_cross_entropy
from pathways_lm.layers.moe.losses import RouterSums
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, Params
from pathways_lm.models.transformer import Output
from pathways_lm.train.precision import Precision

PADDING = 0


class Sums(NamedTuple):
    """Sums over the tokens of a batch, fp32. Divide only when all parts are added."""

    nll: Array
    """Negative log-likelihood of the targets, nats."""
    log_z_squared: Array
    tokens: Array
    """Targets scored."""
    tasks: Array | None = None
    """[2, T]: negative log-likelihood and targets of each task, where there are several."""
    routing: RouterSums | None = None
    """Of all MoE layers, the encoder's first: each array has a leading dimension of layers."""


def loss_sums(
    model: Model,
    precision: Precision,
    params: Params,
    batch: Batch,
    key: Array | None = None,
    z_loss: float = 0.0,
    scale: Array | float = 1.0,
) -> tuple[Array, Sums]:
    """Scores every target but padding.

    Args:
      key: for dropout and routers in training; None in evaluation.
      z_loss, scale: as for `score`.

    Returns:
      What gradients are taken of, without what routers add, and the sums.
    """
    bound = model.bind(precision.cast(params))
    output: Output = bound(batch, key)
    objective, sums = score(output.projection, bound.lay(batch.targets), batch.tasks, z_loss, scale)
    return objective, sums._replace(routing=_routing(output))


def score(
    projection: Projection,
    targets_BL: Array,
    tasks_BT: Array | None = None,
    z_loss: float = 0.0,
    scale: Array | float = 1.0,
) -> tuple[Array, Sums]:
    """scale x (nll + z_loss log_z^2) summed over all targets but padding, and the sums, which have no gradient.

    Args:
      targets_BL: laid as the projection.
      tasks_BT: 1 at each row's task.
    """
    weight_BL = (targets_BL != PADDING).astype(jnp.float32)
    objective, nll_BL, log_z_BL = linear_cross_entropy(projection, targets_BL, weight_BL * scale, z_loss)
    nll_B, tokens_B = jnp.sum(nll_BL * weight_BL, axis=1), jnp.sum(weight_BL, axis=1)
    tasks = None
    if tasks_BT is not None:
        tasks = jnp.stack([jnp.sum(tasks_BT * each_B[:, None], axis=0) for each_B in (nll_B, tokens_B)])
    sums = Sums(
        nll=jnp.sum(nll_B),
        log_z_squared=jnp.sum(jnp.square(log_z_BL) * weight_BL),
        tokens=jnp.sum(tokens_B),
        tasks=tasks,
    )
    return objective, sums


def _routing(output: Output) -> RouterSums | None:
    told = [out.routing for out in (output.encoder, output.decoder) if out is not None and out.routing is not None]
    if not told:
        return None
    return jax.tree.map(lambda *layers: jnp.concatenate(layers), *told)


def routing_loss(config: MoEConfig, routing: RouterSums, tokens_per_layer: Array) -> Array:
    """What routers add to the loss: the sum of all layers' balance and z-losses (Switch section 2.2; ST-MoE eq. 5).

    Args:
      routing: sums of all MoE layers, of a batch or a part of it.
      tokens_per_layer: tokens that each layer routes in the whole batch, fp32 [layers].
    """
    terms = config.balance_loss * routing.balance + config.router_z_loss * routing.z
    return jnp.sum(terms / tokens_per_layer)


def routed_tokens(model: Model, batch: Batch) -> Array:
    """Tokens that each MoE layer routes, fp32 [layers], the encoder's first. All but padding."""
    config = model.config
    every = config.moe.every
    layers = [(batch.tokens, batch.segments, config.num_layers)]
    if batch.encoder_tokens is not None:
        encoder_layers = config.num_encoder_layers or config.num_layers
        layers.insert(0, (batch.encoder_tokens, batch.encoder_segments, encoder_layers))
    counts = []
    for tokens, segments, num_layers in layers:
        count = jnp.float32(tokens.size) if segments is None else jnp.sum((segments > 0).astype(jnp.float32))
        counts.extend([count] * (num_layers // every))
    return jnp.stack(counts)
