"""Moments stored in bf16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pathways_lm.models.model import Params
from pathways_lm.train.optimizers.adafactor import Factored
from pathways_lm.train.precision import stochastic_round


class RoundedState(NamedTuple):
    """Number of updates done, and the state within."""

    step: Array
    inner: Any


def rounded(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, computed in fp32, with its moments in bf16 between updates.

    They are rounded up or down by chance, to either neighbour the likelier the nearer it is. To the nearest, a moment
    would stand still: in bf16 neighbours differ by one part in 128 to 256, and an update moves a second moment by less
    once beta2 is above 0.996, as Adafactor's is from step 1,000 on. The draws are a function of the number of the
    update: a run goes on bit for bit.

    A factored second moment stays fp32, as it is small.
    """

    def init(params: Params) -> RoundedState:
        state = _moments(lambda leaf, _: leaf.astype(jnp.bfloat16), inner.init(params))
        return RoundedState(jnp.zeros((), jnp.int32), state)

    def update(grads: Params, state: RoundedState, params: Params | None = None) -> tuple[Params, RoundedState]:
        wide = _moments(lambda leaf, _: leaf.astype(jnp.float32), state.inner)
        updates, moved = inner.update(grads, wide, params)
        key = jax.random.fold_in(jax.random.key(0), state.step)
        narrow = _moments(lambda leaf, number: stochastic_round(leaf, jax.random.fold_in(key, number)), moved)
        return updates, RoundedState(state.step + 1, narrow)

    return optax.GradientTransformation(init, update)


def _moments(change: Any, state: Any) -> Any:
    """The state with `change(moment, number)` for each moment but factored ones and counters."""
    leaves, structure = jax.tree.flatten(state, is_leaf=lambda node: isinstance(node, Factored))
    changed = [
        leaf if isinstance(leaf, Factored) or not leaf.shape else change(leaf, number)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, changed)
