"""Adafactor and AdamW over fifty steps against numpy in float64, written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathways_lm.config import OptimizerConfig
from pathways_lm.train.optimizer import leading_layers, make_optimizer
from pathways_lm.train.schedule import make_schedule

STEPS = 50


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in jax.tree_util.tree_leaves_with_path(tree)}


def random_gradients(params, step: int, size: float):
    """A gradient's scale differs by array and by step, as it does in training."""
    random = np.random.default_rng(step)

    def one(shape):
        return (size * 10 ** random.uniform(-2, 0) * random.normal(size=shape)).astype(np.float32)

    return {path: one(p.shape) for path, p in params.items()}


def run(make, draw, config: OptimizerConfig, size: float):
    """Start, and the parameters after STEPS updates with random gradients."""
    model = make()
    params = draw(model)
    structure = jax.tree.structure(params)
    schedule = make_schedule(config, 1000)
    optimizer = make_optimizer(config, schedule, model)
    start, state = leaves(params), optimizer.init(params)

    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    shardings = jax.tree.map(lambda p: p.sharding, params)
    for step in range(STEPS):
        grads = jax.tree.unflatten(structure, random_gradients(start, step, size).values())
        params, state = update(params, state, jax.device_put(grads, shardings))
    return start, leaves(params)


def clipped(grads, limit):
    """Scaled down together, where their common length is above the limit."""
    grads = {path: g.astype(np.float64) for path, g in grads.items()}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {path: g * min(1.0, limit / norm) for path, g in grads.items()}


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    errors = {path: np.abs(actual[path] - e).max() / np.abs(e).max() for path, e in expected.items()}
    assert {path: error for path, error in errors.items() if not error <= 1e-6} == {}


def numpy_adafactor(p, gradients, rates, beta1, weight_decay, stacked):
    """One array, unfactored: T5X's order of operations with PaLM's decay, lr squared."""
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        beta2 = 1 - k**-0.8
        v = beta2 * v + (1 - beta2) * (g**2 + 1e-30)
        scaled = np.empty_like(p)
        layers = range(p.shape[0]) if stacked else [...]
        for layer in layers:
            size = max(np.sqrt((p[layer] ** 2).mean()), 1e-3)
            scaled[layer] = rate * size * g[layer] / np.sqrt(v[layer])
        m = beta1 * m + (1 - beta1) * scaled
        p = (1 - weight_decay * rate**2) * p - m
    return p


@pytest.mark.parametrize(
    ("rate", "hold", "weight_decay", "size"),
    [(1e-2, 10_000, 1.0, 1.0), (1e-1, 10, 2.0, 1e-3)],
    ids=["PaLM's, clipped", "a falling rate, not clipped"],
)
def test_adafactor(make, draw, rate, hold, weight_decay, size):
    config = OptimizerConfig(learning_rate=rate, hold_steps=hold, weight_decay=weight_decay)
    start, actual = run(make, draw, config, size)
    gradients = [clipped(random_gradients(start, step, size), 1.0) for step in range(STEPS)]
    rates = [rate * min(1, np.sqrt(hold / k)) for k in range(1, STEPS + 1)]
    expected = {
        path: numpy_adafactor(p, [g[path] for g in gradients], rates, 0.9, weight_decay, stacked="blocks" in path)
        for path, p in start.items()
    }
    assert_close(actual, expected)


def test_adafactor_moves_zeros(make, draw):
    """RMS(p) counts as 1e-3 at least; at the first update g / sqrt(v) is the gradient's sign."""
    model = make()
    params = jax.tree.map(jnp.zeros_like, draw(model))
    config = OptimizerConfig()
    optimizer = make_optimizer(config, make_schedule(config, 10), model)
    grads = jax.tree.map(lambda p: jnp.full_like(p, -0.25), params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for update in leaves(updates).values():
        np.testing.assert_allclose(update, 0.1 * 1e-2 * 1e-3, rtol=1e-5)


def numpy_adamw(p, gradients, rates, beta1, beta2, weight_decay):
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - rate * (m / (1 - beta1**k) / (np.sqrt(v / (1 - beta2**k)) + 1e-8) + weight_decay * p)
    return p


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["clipped", "not clipped"])
def test_adamw(make, draw, size):
    """Norm scales, and they alone, do not decay. The rate warms up, so an off-by-one in it would show."""
    rates = {"schedule": "cosine", "learning_rate": 1e-3, "hold_steps": 60}
    config = OptimizerConfig(name="adamw", **rates, beta1=0.8, beta2=0.97, weight_decay=0.3, clip_norm=0.5)
    start, actual = run(make, draw, config, size)
    gradients = [clipped(random_gradients(start, step, size), 0.5) for step in range(STEPS)]
    rates = [1e-3 * k / 60 for k in range(1, STEPS + 1)]
    expected = {
        path: numpy_adamw(p, [g[path] for g in gradients], rates, 0.8, 0.97, 0.0 if "scale" in path else 0.3)
        for path, p in start.items()
    }
    assert_close(actual, expected)


def test_leading_layers(make):
    lead = leaves(leading_layers(make()))
    assert {path: int(count) for path, count in lead.items()} == {path: int("blocks" in path) for path in lead}
    assert len(lead) == 10
