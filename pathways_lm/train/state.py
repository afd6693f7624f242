"""Everything a step changes, and nothing else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from pathways_lm.models.model import Model, Params
from pathways_lm.sharding import Rules, on_mesh
from pathways_lm.train.guard import Guard, first_guard


class TrainState(NamedTuple):
    """The state of a run after `step` updates. The next batch is batch number `step`."""

    step: Array
    """int32 scalar."""
    params: Params
    optimizer: Any
    rng: Array
    """uint32 [2]: the key of everything random after initialisation, folded with the step."""
    guard: Guard
    """What is known of updates that were not finite."""


def initial_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    loss_scale: float = 1.0,
    params: Params | None = None,
) -> TrainState:
    """Step 0, of these parameters, or of some drawn from the seed: the same numbers on every mesh."""

    def build(params: Params) -> TrainState:
        state = _wrap(optimizer, seed, loss_scale)(params)
        return state._replace(optimizer=to_host(model.rules, state.optimizer))

    return jax.jit(build, out_shardings=shardings(abstract_state(model, optimizer, seed)))(
        model.initialise(seed) if params is None else params
    )


def abstract_state(model: Model, optimizer: optax.GradientTransformation, seed: int = 0) -> TrainState:
    """The state's shapes, types and shardings, without its numbers."""
    shapes = jax.eval_shape(_wrap(optimizer, seed), model.abstract)
    placed = jax.tree.map(lambda leaf: on_mesh(leaf, model.rules.mesh), shapes)
    # Moments lie where their parameters do. Tracing does not tell: from JAX 0.12 on, zeros have no sharding.
    lying = {parameter_names(path): param for path, param in jax.tree_util.tree_leaves_with_path(model.abstract)}
    moments = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _beside(lying[parameter_names(path)], leaf) if leaf.shape else leaf, placed.optimizer
    )
    if model.rules.offload:
        moments = jax.tree.map(
            lambda leaf: leaf.update(sharding=leaf.sharding.with_memory_kind("pinned_host")) if leaf.shape else leaf,
            moments,
        )
    return placed._replace(optimizer=moments)


def parameter_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of the parameter that a moment is of: an optimizer's state holds dictionaries like the parameters',
    whose leaves may have parts."""
    end = len(path)
    while end and not isinstance(path[end - 1], DictKey):
        end -= 1
    start = end
    while start and isinstance(path[start - 1], DictKey):
        start -= 1
    return tuple(key.key for key in path[start:end])


def _beside(param: jax.ShapeDtypeStruct, moment: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The moment cut as its parameter, but for dimensions over which it is a mean."""
    entries = (*param.sharding.spec, *(None,) * len(param.shape))
    spec = [
        entry if size == whole else None for entry, size, whole in zip(entries, moment.shape, param.shape, strict=False)
    ]
    return moment.update(sharding=NamedSharding(param.sharding.mesh, PartitionSpec(*spec)))


def to_device(rules: Rules, moments: Any) -> Any:
    """An optimizer's state, where it is computed with."""
    return _moved(rules, moments, jax.memory.Space.Device)


def to_host(rules: Rules, moments: Any) -> Any:
    """An optimizer's state, where it lies between updates."""
    return _moved(rules, moments, jax.memory.Space.Host)


def _moved(rules: Rules, moments: Any, space: Any) -> Any:
    if not rules.offload:
        return moments
    # Counters stay: they cost nothing.
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.shape else leaf, moments)


def shardings(abstract: TrainState) -> TrainState:
    """The shardings of an abstract state's leaves."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint holds it: parameters apart, for those who want nothing else."""
    rest = state._asdict()
    return {"params": rest.pop("params"), "training": {**rest, "guard": state.guard._asdict()}}


def from_items(items: dict[str, Any]) -> TrainState:
    """The inverse of `to_items`."""
    rest = items["training"]
    return TrainState(params=items["params"], **{**rest, "guard": Guard(**rest["guard"])})


def as_fp32(params: Params) -> Params:
    """Parameters as updates are computed with, whatever they are stored in."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def _wrap(optimizer: optax.GradientTransformation, seed: int, loss_scale: float = 1.0) -> Any:
    def wrap(params: Params) -> TrainState:
        # A stream apart from the one that drew the parameters.
        rng = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
        return TrainState(
            jnp.zeros((), jnp.int32), params, optimizer.init(as_fp32(params)), rng, first_guard(loss_scale)
        )

    return wrap
