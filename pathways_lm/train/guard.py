"""What keeps an update that is not finite from the parameters: skipping it, and with fp16 a scale of the loss.

Micikevicius et al. (arXiv:1710.03740, section 3.2): gradients too small for fp16 are scaled up before they are computed
and down again in fp32. Where they overflow, the update is skipped and the scale halved; after so many good ones it is
doubled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh

from pathways_lm.config import TrainConfig
from pathways_lm.mesh import platform


class Guard(NamedTuple):
    """What is known of the updates so far."""

    skipped: Array
    """int32: updates that were not finite."""
    scale: Array
    """fp32: of the mean loss, where the precision asks for one."""
    good: Array
    """int32: finite updates since the scale last changed."""


def first_guard(loss_scale: float) -> Guard:
    """At step 0."""
    return Guard(jnp.zeros((), jnp.int32), jnp.float32(loss_scale), jnp.zeros((), jnp.int32))


def next_guard(config: TrainConfig, guard: Guard, finite: Array) -> Guard:
    """After an update: half the scale where it was not finite, twice after `loss_scale_interval` that were."""
    good = jnp.where(finite, guard.good + 1, 0)
    full = good == config.loss_scale_interval
    raised = jnp.where(full, guard.scale * 2, guard.scale)
    scale = jnp.where(finite, raised, jnp.maximum(guard.scale / 2, config.loss_scale_floor))
    return Guard(guard.skipped + ~finite, scale, jnp.where(full, 0, good))


def changed(finite: Array, change: Callable[[Any], Any], old: Any, mesh: Mesh | AbstractMesh) -> Any:
    """What `change` makes of a tree where the update is finite, else the tree as it is."""
    if platform(mesh) == "cpu" and mesh.size == 1:
        # A branch, as choosing number by number reads and writes everything once more. On a GPU the host would wait
        # for the condition, and what several devices exchange is the same everywhere.
        return jax.lax.cond(finite, change, lambda old: old, old)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), change(old), old)
