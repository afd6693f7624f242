"""One update: loss, gradients, optimizer. Pure; jitted and donated by `compile_step`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import TrainConfig
from pathways_lm.models.decoder import Model, Params
from pathways_lm.train.losses import Sums, next_token_sums
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.schedule import Schedule
from pathways_lm.train.state import TrainState, abstract_state, shardings

Metrics = dict[str, Array]
Step = Callable[[TrainState, Array], tuple[TrainState, Metrics]]


def gradient_sums(model: Model, config: TrainConfig, params: Params, tokens_BL: Array) -> tuple[Params, Sums]:
    """Gradients of the summed loss, and the sums, over all microbatches of a batch.

    Nothing is divided here: with sums, gradients do not depend on how many microbatches there are
    or how their tokens are spread.
    """
    policy = POLICIES[config.precision]

    def loss(params: Params, tokens: Array) -> tuple[Array, Sums]:
        sums = next_token_sums(model, policy, params, tokens)
        return sums.nll + config.z_loss * sums.log_z_squared, sums

    differentiate = jax.grad(loss, has_aux=True)
    if config.microbatches == 1:
        return differentiate(params, tokens_BL)

    B, L = tokens_BL.shape
    M = config.microbatches
    # Every M-th row, so that each device keeps the rows it has.
    rows = model.rules("batch", None, "length")
    parts_MBL = jnp.swapaxes(jnp.reshape(tokens_BL, (B // M, M, L), out_sharding=rows), 0, 1)

    def accumulate(total: tuple[Params, Sums], tokens: Array) -> tuple[tuple[Params, Sums], None]:
        return jax.tree.map(jnp.add, total, differentiate(params, tokens)), None

    def zero(traced: jax.ShapeDtypeStruct) -> Array:
        value = jnp.zeros(traced.shape, traced.dtype)
        return value if traced.sharding is None else reshard(value, traced.sharding)

    start = jax.tree.map(zero, jax.eval_shape(differentiate, params, parts_MBL[0]))
    return jax.lax.scan(accumulate, start, parts_MBL)[0]


def make_step(model: Model, optimizer: optax.GradientTransformation, schedule: Schedule, config: TrainConfig) -> Step:
    """The update as a pure function of the state and a batch [B, L] of tokens."""

    def step(state: TrainState, tokens_BL: Array) -> tuple[TrainState, Metrics]:
        with jax.named_scope("gradients"):
            grads, sums = gradient_sums(model, config, state.params, tokens_BL)
            grads = jax.tree.map(lambda g: g / sums.tokens, grads)
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums.nll / sums.tokens,
            "z_loss": config.z_loss * sums.log_z_squared / sums.tokens,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "learning_rate": schedule(state.step + 1),
            "batch_tokens": sums.tokens,
        }
        return TrainState(state.step + 1, params, optimizer_state, state.rng), metrics

    return step


def compile_step(
    step: Step, model: Model, optimizer: optax.GradientTransformation, batch_shape: tuple[int, int]
) -> Any:
    """The step compiled for its mesh; the old state's memory becomes the new one's."""
    state = abstract_state(model, optimizer)
    tokens = jax.ShapeDtypeStruct(batch_shape, jnp.int32, sharding=model.rules("batch", "length"))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), model.rules()))
    return jitted.lower(state, tokens).compile()
