"""Optimizers as optax transformations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from pathways_lm.config import OptimizerConfig
from pathways_lm.models.model import Model, Params
from pathways_lm.train.schedule import Schedule


def make_optimizer(config: OptimizerConfig, schedule: Schedule, model: Model) -> optax.GradientTransformation:
    """Global-norm clip, then the optimizer the config names, learning rate included."""
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.name == "adafactor":
        return optax.chain(clip, palm_adafactor(schedule, config.beta1, config.weight_decay, leading_layers(model)))
    # optax counts updates from 0, schedules here from 1.
    return optax.chain(
        clip,
        optax.adamw(
            lambda count: schedule(count + 1),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=decayed(model),
        ),
    )


def leading_layers(model: Model) -> Params:
    """For each parameter, how many leading dimensions count layers: those that the layer itself did not name."""
    lead = jax.tree.map(
        lambda variable: len(variable.get_value().shape) - len(variable.dims),
        model.variables,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return nnx.to_pure_dict(lead)


def decayed(model: Model) -> Params:
    """Which parameters AdamW shrinks: kernels and tables, not scales and biases."""

    def is_decayed(path: tuple[jax.tree_util.DictKey, ...], _: jax.ShapeDtypeStruct) -> bool:
        return not path[-1].key.endswith(("scale", "bias"))

    return jax.tree_util.tree_map_with_path(is_decayed, model.abstract)


class AdafactorState(NamedTuple):
    """Number of updates done; momentum and second moment shaped as the parameters, fp32."""

    step: Array
    momentum: Params
    second_moment: Params


def palm_adafactor(
    schedule: Schedule, beta1: float, weight_decay: float, stacked: Params
) -> optax.GradientTransformation:
    """PaLM's Adafactor: not factored, with parameter scaling (section 5.1; semantics of T5X).

    At update k, with rate r = schedule(k) and second-moment decay b2 = 1 - k^-0.8:

        v <- b2 v + (1 - b2) (g^2 + 1e-30)
        m <- b1 m + (1 - b1) r max(RMS(p), 1e-3) g / sqrt(v)
        p <- (1 - weight_decay r^2) p - m

    so b2 is 0 at the first update, and the momentum averages updates that are already scaled.
    PaLM's dynamic weight decay is weight_decay = 1.

    Args:
      stacked: for each parameter, how many leading dimensions count layers. RMS(p) is taken for
        each layer by itself, as if the layers were separate arrays.
    """

    def init(params: Params) -> AdafactorState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdafactorState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: AdafactorState, params: Params | None = None) -> tuple[Params, AdafactorState]:
        assert params is not None
        k = state.step + 1
        rate = schedule(k)
        beta2 = 1.0 - k.astype(jnp.float32) ** -0.8
        second = jax.tree.map(
            lambda v, g: beta2 * v + (1 - beta2) * (jnp.square(g) + 1e-30), state.second_moment, grads
        )

        def momentum(m: Array, g: Array, v: Array, p: Array, lead: int) -> Array:
            rms = jnp.sqrt(jnp.mean(jnp.square(p), axis=tuple(range(lead, p.ndim)), keepdims=True))
            return beta1 * m + (1 - beta1) * rate * jnp.maximum(rms, 1e-3) * g * jax.lax.rsqrt(v)

        moved = jax.tree.map(momentum, state.momentum, grads, second, params, stacked)
        updates = jax.tree.map(lambda m, p: -m - weight_decay * jnp.square(rate) * p, moved, params)
        return updates, AdafactorState(k, moved, second)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
