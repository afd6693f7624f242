"""One update: loss, gradients, optimizer. Pure; jitted and donated by `compile_step`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import reshard

from pathways_lm.compiler import compiler_options
from pathways_lm.config import MoEConfig, TrainConfig
from pathways_lm.kernels.cross_entropy import Projection
from pathways_lm.kernels.zigzag import cut
from pathways_lm.layers.dropout import site
from pathways_lm.layers.moe.losses import RouterSums
from pathways_lm.mesh import platform
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, Params
from pathways_lm.pipeline.parts import Parts, Score
from pathways_lm.pipeline.run import Pipeline
from pathways_lm.pipeline.timetable import Timetable
from pathways_lm.train.guard import changed, next_guard
from pathways_lm.train.losses import PADDING, Sums, loss_sums, routed_tokens, routing_loss, score
from pathways_lm.train.norms import roots, squares, total
from pathways_lm.train.precision import POLICIES, stochastic_round
from pathways_lm.train.schedule import Schedule
from pathways_lm.train.state import TrainState, abstract_state, as_fp32, shardings, to_device, to_host

Metrics = dict[str, Any]
"""Arrays by name, or by name of a group and name."""
_ROUNDING = 1 << 30
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def gradient_sums(
    model: Model, config: TrainConfig, params: Params, batch: Batch, key: Array | None, scale: Array | float = 1.0
) -> tuple[Params, Sums]:
    """Gradients of the summed loss, and the sums, over all microbatches of a batch.

    Nothing is divided here but what routers add, by counts of the whole batch: with sums, gradients do not depend on
    how many microbatches there are or how their tokens are spread.

    Args:
      key: for dropout and routers, folded with the number of the microbatch.
      scale: of the loss, and so of the gradients.
    """
    policy = POLICIES[config.precision]
    moe = model.config.moe
    if moe.num_experts:
        # A router's loss is a mean over its tokens; all will be divided by the number of targets.
        share = routed_tokens(model, batch) / jnp.sum((batch.targets != PADDING).astype(jnp.float32))

    def scored(projection: Projection, part: Batch) -> tuple[Array, Sums]:
        return score(projection, cut(part.targets, model.rules), part.tasks, config.z_loss, scale)

    if model.rules.stages > 1:
        routed = share if moe.num_experts else None
        return _pipelined(model, config, policy.cast(params), batch, key, scored, routed, scale)

    def loss(params: Params, part: Batch, key: Array | None) -> tuple[Array, Sums]:
        objective, sums = loss_sums(model, policy, params, part, key, config.z_loss, scale)
        if sums.routing is not None:
            objective = objective + routing_loss(moe, sums.routing, share) * scale
        return objective, sums

    held = model.hold(policy.cast(params))

    def differentiate(part: Batch, key: Array | None) -> tuple[Params, Sums]:
        grads, sums = jax.grad(loss, has_aux=True)(held, part, key)
        if platform(model.rules.mesh) == "gpu":
            # Gradients of unrolled layers are put together here. XLA would do that within each kernel that reads them,
            # where every number asks in turn of which layer it is: at a third of the memory's rate.
            grads = jax.lax.optimization_barrier(grads)
        return jax.tree.map(lambda grad: grad.astype(jnp.float32), grads), sums

    if config.microbatches == 1:
        grads, sums = differentiate(batch, site(key, 0))
        return jax.tree.map(_settle, grads, params), sums

    def accumulate(total: tuple[Params, Sums], each: tuple[Batch, Array]) -> tuple[tuple[Params, Sums], None]:
        part, number = each
        own = None if key is None else jax.random.fold_in(key, number)
        grads, sums = differentiate(part, own)
        if model.rules.zero == 2:
            grads = jax.tree.map(_settle, grads, params)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    microbatches = _microbatches(model, batch, config.microbatches)
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    grads, sums = jax.eval_shape(differentiate, first, key)
    start = jax.tree.map(zeros_like, (params if model.rules.zero == 2 else grads, sums))
    grads, sums = jax.lax.scan(accumulate, start, (microbatches, jnp.arange(config.microbatches)))[0]
    return jax.tree.map(_settle, grads, params), sums


def _microbatches(model: Model, batch: Batch, count: int) -> Batch:
    """A batch's rows in so many parts, [count, B / count, L]."""

    def parts(leaf: Array) -> Array:
        # Every count-th row, so that each device keeps the rows it has.
        B, L = leaf.shape
        rows = model.rules("batch", None, None)
        return jnp.swapaxes(jnp.reshape(leaf, (B // count, count, L), out_sharding=rows), 0, 1)

    return jax.tree.map(parts, batch)


def _pipelined(
    model: Model,
    config: TrainConfig,
    cast: Params,
    batch: Batch,
    key: Array | None,
    scored: Score,
    share: Array | None,
    scale: Array | float,
) -> tuple[Params, Sums]:
    """The same through the stages of a pipeline."""
    towers = model.bind(model.abstract).towers
    table = Timetable(config.pipeline, model.rules.stages, model.rules.chunks, config.microbatches, len(towers))
    # All layers of a tower route the same tokens.
    tokens = {} if share is None else dict(zip(towers, (share[0], share[-1]), strict=False))
    microbatches = _microbatches(model, batch, config.microbatches)

    def routing_of(routing: RouterSums, tokens_per_layer: Array) -> Array:
        return routing_loss(model.config.moe, routing, tokens_per_layer) * scale

    parts = Parts(model, cast, microbatches, key, scored, routing_of, tokens)
    grads, sums, routing = Pipeline(parts, table).run()
    return jax.tree.map(lambda grad, param: _settle(grad, param), grads, model.abstract), sums._replace(routing=routing)


def zeros_like(of: Array | jax.ShapeDtypeStruct) -> Array:
    """Zeros that lie as `of`, also where that is sums still to be added over devices."""
    kind = jax.typeof(of) if isinstance(of, Array) else of
    value = jnp.zeros(kind.shape, kind.dtype)
    return value if kind.sharding is None else reshard(value, kind.sharding)


def _settle(grad: Array, param: Array) -> Array:
    """The gradient added over devices, cut as its parameter is stored."""
    return reshard(grad, param.sharding if isinstance(param, jax.ShapeDtypeStruct) else jax.typeof(param).sharding)


def make_step(
    model: Model, optimizer: optax.GradientTransformationExtraArgs, schedule: Schedule, config: TrainConfig
) -> Step:
    """The update as a pure function of the state and a batch. One that is not finite changes no parameter.

    Args:
      optimizer: of `make_optimizer`: it is given sums of gradients, their divisor, and the norm of what comes out.
    """
    policy = POLICIES[config.precision]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        # The loss is a sum over tokens; what is scaled is about its mean.
        scale = state.guard.scale / batch.targets.size if policy.scaled else 1.0
        with jax.named_scope("gradients"):
            grads, sums = gradient_sums(model, config, state.params, batch, key, scale)
        divisor = sums.tokens * scale
        gradient_squares = {name: square / divisor**2 for name, square in squares(model, grads).items()}
        grad_norm = total(gradient_squares)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums.nll)

        def update(old: tuple[Params, Any]) -> tuple[Params, Any]:
            updates, moments = optimizer.update(grads, old[1], as_fp32(old[0]), divisor=divisor, norm=grad_norm)
            return apply(old[0], updates, key), moments

        with jax.named_scope("optimizer"):
            before = state.params, to_device(model.rules, state.optimizer)
            params, moments = changed(finite, update, before, model.rules.mesh)
            moments = to_host(model.rules, moments)
        parameter_squares = squares(model, params)
        guard = next_guard(config, state.guard, finite)
        metrics = {
            "loss": sums.nll / sums.tokens,
            "z_loss": config.z_loss * sums.log_z_squared / sums.tokens,
            "grad_norm": grad_norm,
            "param_norm": total(parameter_squares),
            "grad_norms": roots(gradient_squares),
            "param_norms": roots(parameter_squares),
            "learning_rate": schedule(state.step + 1),
            "batch_tokens": sums.tokens,
            "skipped": guard.skipped,
        }
        if policy.scaled:
            metrics["loss_scale"] = state.guard.scale
        if sums.tasks is not None:
            metrics["tasks"] = sums.tasks
        if sums.routing is not None:
            metrics |= routing_metrics(model.config.moe, sums.routing)
        return TrainState(state.step + 1, params, moments, state.rng, guard), metrics

    return step


def apply(params: Params, updates: Params, key: Array) -> Params:
    """Parameters and their updates added in fp32, and rounded by chance where they are stored in less."""
    leaves, tree = jax.tree.flatten(params)
    # A stream apart from dropout's and the routers'.
    key = jax.random.fold_in(key, _ROUNDING)
    moved = []
    for number, (leaf, update) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        summed = leaf.astype(jnp.float32) + update
        narrow = leaf.dtype != summed.dtype
        moved.append(stochastic_round(summed, jax.random.fold_in(key, number)) if narrow else summed)
    return jax.tree.unflatten(tree, moved)


def routing_metrics(config: MoEConfig, routing: RouterSums) -> Metrics:
    """What is told of the routers of a batch: means over layers, and each expert's share of each layer's tokens."""
    return {
        "balance_loss": config.balance_loss * jnp.sum(routing.balance / routing.tokens),
        "router_z_loss": config.router_z_loss * jnp.sum(routing.z / routing.tokens),
        "dropped_fraction": jnp.sum(routing.dropped) / jnp.sum(routing.choices),
        "router_entropy": jnp.mean(routing.entropy / routing.tokens),
        "expert_load": routing.load_E / jnp.sum(routing.load_E, axis=-1, keepdims=True),
    }


def compile_step(
    step: Step,
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    example: Batch,
    options: dict[str, Any] | None = None,
) -> Any:
    """The step compiled for its mesh and batches like `example`; the old state's memory becomes the new one's.

    Args:
      options: asked of the compiler besides those of `compiler.py`.
    """
    state = abstract_state(model, optimizer)
    rows = model.rules("batch", None)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), example)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), model.rules()))
    return jitted.lower(state, batch).compile(
        {**compiler_options(model.rules.mesh, model.config.matmuls), **(options or {})}
    )
