"""Optimizers as optax transformations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pathways_lm.config import OptimizerConfig
from pathways_lm.models.model import Model, Params
from pathways_lm.train.optimizers.adafactor import adafactor
from pathways_lm.train.optimizers.moments import rounded
from pathways_lm.train.optimizers.muon import is_matrix, scale_by_muon
from pathways_lm.train.optimizers.treatment import Treatment, treatments
from pathways_lm.train.schedule import Schedule


def make_optimizer(config: OptimizerConfig, schedule: Schedule, model: Model) -> optax.GradientTransformationExtraArgs:
    """Global-norm clip, then the optimizer the config names, learning rate included.

    `update` takes besides what `_clip` says.

    Raises ConfigError where `rates` or `undecayed` name parameters that the model does not have.
    """
    treated = treatments(config, model)
    if config.name == "adafactor":
        moved = adafactor(config, schedule, treated)
    else:
        shrinks = jax.tree.map(lambda how: how.shrinks, treated)
        decay = optax.add_decayed_weights(config.weight_decay, mask=shrinks)
        moved = optax.chain(_direction(config, treated), decay, _by_rate(schedule, treated))
    return optax.chain(_clip(config.clip_norm), rounded(moved) if config.moments == "bfloat16" else moved)


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """Gradients from sums, so that their norm is at most `limit`; 0 is none (arXiv:1211.5063, algorithm 1).

    `update` takes a `divisor` of the sums, 1 if none is given, and the `norm` of what comes out, if it is known: so one
    factor does it all, and nothing is read twice.
    """

    def update(
        sums: Params,
        state: optax.EmptyState,
        params: Params | None = None,
        *,
        divisor: Array | float = 1.0,
        norm: Array | None = None,
        **_: Any,
    ) -> tuple[Params, optax.EmptyState]:
        factor = 1 / divisor
        if limit:
            norm = optax.tree.norm(sums) * factor if norm is None else norm
            factor = factor * jnp.minimum(1.0, limit / norm)
        return jax.tree.map(lambda g: factor * g, sums), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _direction(config: OptimizerConfig, treated: Params) -> optax.GradientTransformation:
    """Where an optimizer goes, before decay and rate. Adam is arXiv:1412.6980's, Lion arXiv:2302.06675's."""
    if config.name == "lion":
        return optax.scale_by_lion(config.beta1, config.beta2)
    adam = optax.scale_by_adam(config.beta1, config.beta2)
    if config.name != "muon":
        return adam
    kinds = jax.tree.map(lambda how: "matrix" if is_matrix(how) else "other", treated)
    return optax.partition({"matrix": scale_by_muon(config.muon_momentum, treated), "other": adam}, kinds)


class RateState(NamedTuple):
    """Number of updates done."""

    step: Array


def _by_rate(schedule: Schedule, treated: Params) -> optax.GradientTransformation:
    """Down, by the rate of the update's number and each parameter's factor."""

    def init(_: Params) -> RateState:
        return RateState(jnp.zeros((), jnp.int32))

    def update(moved: Params, state: RateState, params: Params | None = None) -> tuple[Params, RateState]:
        rate = schedule(state.step + 1)

        def down(u: Array, how: Treatment) -> Array:
            return -(how.rate * rate) * u

        return jax.tree.map(down, moved, treated), RateState(state.step + 1)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
