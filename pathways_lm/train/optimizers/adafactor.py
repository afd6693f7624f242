"""Adafactor (arXiv:1804.04235) as T5X does it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pathways_lm.config import OptimizerConfig
from pathways_lm.models.model import Params
from pathways_lm.train.optimizers.treatment import Treatment
from pathways_lm.train.schedule import Schedule


class Factored(NamedTuple):
    """A matrix's second moment: as many dimensions as the matrix, of which the averaged ones are 1 long."""

    rows: Array
    """Means over the columns."""
    columns: Array
    """Means over the rows."""


class AdafactorState(NamedTuple):
    """Number of updates done; moments, for each parameter."""

    step: Array
    momentum: Any
    """Shaped as the parameters; nothing where beta1 is 0."""
    second_moment: Any
    """Shaped as the parameters, or `Factored`."""


def adafactor(config: OptimizerConfig, schedule: Schedule, treated: Params) -> optax.GradientTransformation:
    """Adafactor with parameter scaling. At update k, with rate r and b2 = min(cap, 1 - k^-exponent):

        s <- g^2 + 1e-30
        v <- b2 v + (1 - b2) s,                                      u = g / sqrt(v)
        or, factored: R <- b2 R + (1 - b2) mean of s over columns
                      C <- b2 C + (1 - b2) mean of s over rows,      u = g / sqrt(R / mean(R)) / sqrt(C)
        u <- u / max(1, RMS(u) / clip)
        m <- b1 m + (1 - b1) r max(RMS(p), 1e-3) u
        p <- (1 - weight_decay r^2) p - m

    so b2 is 0 at the first update, and the momentum averages updates that are already scaled. PaLM (section 5.1) is
    not factored and has weight_decay 1 and no clip; T5 is factored and has clip 1, b1 = 0 and no decay.

    Means are those of one array, layers and experts apart. What has no model dimension, or fewer than
    `factored_from` rows or columns, is not factored.
    """
    beta1 = config.beta1

    def begin(param: Array, how: Treatment) -> Array | Factored:
        zeros = jnp.zeros_like(param)
        if not _is_factored(config, param.shape, how):
            return zeros
        return Factored(_mean(zeros, how.columns), _mean(zeros, how.rows))

    def init(params: Params) -> AdafactorState:
        momentum = jax.tree.map(jnp.zeros_like, params) if beta1 else optax.EmptyState()
        return AdafactorState(jnp.zeros((), jnp.int32), momentum, jax.tree.map(begin, params, treated))

    def update(grads: Params, state: AdafactorState, params: Params | None = None) -> tuple[Params, AdafactorState]:
        assert params is not None
        k = state.step + 1
        beta2 = jnp.minimum(config.beta2_cap, 1.0 - jnp.asarray(k, float) ** -config.beta2_exponent)
        second = jax.tree.map(
            lambda g, old, how: _second_moment(g, old, how, beta2), grads, state.second_moment, treated
        )
        rate = schedule(k)

        def scaled(g: Array, v: Array | Factored, p: Array, how: Treatment) -> Array:
            u = g * _inverse_root(v, how)
            if config.update_clip:
                u = u / jnp.maximum(1.0, _rms(u, how) / config.update_clip)
            return how.rate * rate * jnp.maximum(_rms(p, how), 1e-3) * u

        moved = jax.tree.map(scaled, grads, second, params, treated)
        momentum = state.momentum
        if beta1:
            moved = momentum = jax.tree.map(lambda m, u: beta1 * m + (1 - beta1) * u, momentum, moved)

        def step(m: Array, p: Array, how: Treatment) -> Array:
            return -m - config.weight_decay * jnp.square(how.rate * rate) * p if how.shrinks else -m

        return jax.tree.map(step, moved, params, treated), AdafactorState(k, momentum, second)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _is_factored(config: OptimizerConfig, shape: tuple[int, ...], how: Treatment) -> bool:
    sides = [_size(shape, side) for side in (how.rows, how.columns)]
    return config.factored and bool(how.columns) and min(sides) >= config.factored_from


def _size(shape: tuple[int, ...], dimensions: tuple[int, ...]) -> int:
    size = 1
    for dimension in dimensions:
        size *= shape[dimension]
    return size


def _mean(of: Array, over: tuple[int, ...]) -> Array:
    return jnp.mean(of, axis=over, keepdims=True)


def _rms(of: Array, how: Treatment) -> Array:
    return jnp.sqrt(_mean(jnp.square(of), how.own))


def _second_moment(g: Array, old: Array | Factored, how: Treatment, beta2: Array) -> Array | Factored:
    square = jnp.square(g) + 1e-30
    if not isinstance(old, Factored):
        return beta2 * old + (1 - beta2) * square
    return Factored(
        beta2 * old.rows + (1 - beta2) * _mean(square, how.columns),
        beta2 * old.columns + (1 - beta2) * _mean(square, how.rows),
    )


def _inverse_root(v: Array | Factored, how: Treatment) -> Array:
    if not isinstance(v, Factored):
        return jax.lax.rsqrt(v)
    return jax.lax.rsqrt(v.rows / _mean(v.rows, how.rows)) * jax.lax.rsqrt(v.columns)
