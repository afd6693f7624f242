"""Every optimizer over fifty steps against numpy in float64, written from the papers and T5X's rule.

In fp32 all agree to 1e-6 of an array's largest number, half of which is the rounding of fifty sums; the same in float64
shows that nothing else is in it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathways_lm.config import MoEConfig, OptimizerConfig
from pathways_lm.train import optimizer as optimizer_module
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule

STEPS = 50
# What has layers, experts, heads and none of them is there.
MOE = {"num_layers": 2, "moe": MoEConfig(num_experts=4, every=1)}
EXPERTS = ("['moe']['gate']", "['moe']['up']", "['moe']['down']")


def leaves(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in jax.tree_util.tree_leaves_with_path(tree)}


def random_gradients(params, step: int, size: float):
    """A gradient's scale differs by array and by step, as it does in training."""
    random = np.random.default_rng(step)

    def one(shape):
        return (size * 10 ** random.uniform(-2, 0) * random.normal(size=shape)).astype(np.float32)

    return {path: one(p.shape) for path, p in params.items()}


def run(model, params, config: OptimizerConfig, size: float = 1.0, kind=np.float32):
    """Start, and the parameters after STEPS updates with random gradients, computed in `kind`."""
    structure = jax.tree.structure(params)
    shardings = jax.tree.map(lambda p: p.sharding, params)
    start = leaves(params)
    with jax.enable_x64(kind is np.float64):
        params = jax.device_put(jax.tree.map(lambda p: np.asarray(p, kind), params), shardings)
        optimizer = make_optimizer(config, make_schedule(config, 1000), model)
        state = optimizer.init(params)

        @jax.jit
        def update(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for step in range(STEPS):
            drawn = [grad.astype(kind) for grad in random_gradients(start, step, size).values()]
            params, state = update(params, state, jax.device_put(jax.tree.unflatten(structure, drawn), shardings))
        end = leaves(params)
    assert {value.dtype for value in end.values()} == {np.dtype(kind)}
    return start, end


def gradients_of(start, size: float, limit: float):
    """What an optimizer is given: all gradients scaled down together, where their common length is above the limit."""

    def clipped(grads):
        grads = {path: g.astype(np.float64) for path, g in grads.items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        return {path: g * min(1.0, limit / norm) for path, g in grads.items()}

    return [clipped(random_gradients(start, step, size)) for step in range(STEPS)]


def separately(rule, path, p, gradients, *arguments):
    """`rule` for each layer and each expert of a stack, as if they were arrays of their own."""
    p = p.astype(np.float64)
    if "blocks" not in path:
        return rule(path, p, gradients, *arguments)
    places = np.ndindex(p.shape[: 2 if path.endswith(EXPERTS) else 1])
    return np.stack([rule(path, p[at], [g[at] for g in gradients], *arguments) for at in places]).reshape(p.shape)


def errors(actual, expected):
    assert actual.keys() == expected.keys()
    return {path: np.abs(actual[path] - e).max() / np.abs(e).max() for path, e in expected.items()}


def assert_close(actual, expected, limit=1e-6):
    assert {path: error for path, error in errors(actual, expected).items() if not error <= limit} == {}


def matrix(path, a):
    """A kernel or table as inputs x outputs, or None: heads lie side by side."""
    name = path.split("['")[-1].removesuffix("']")
    if name in ("query", "key", "value"):
        return a.reshape(a.shape[0], -1)
    if name == "out":
        return a.reshape(-1, a.shape[-1])
    return a if name in ("up", "gate", "down", "router", "table") else None


# --- Adafactor


def numpy_adafactor(path, p, gradients, rates, rule):
    """One array: T5X's order of operations (papers, section 13), with PaLM's decay, the rate squared."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    as_matrix = matrix(path, p)
    factored = rule["factored"] and as_matrix is not None and min(as_matrix.shape) >= rule["factored_from"]
    R, C = (np.zeros(as_matrix.shape[0]), np.zeros(as_matrix.shape[1])) if factored else (None, None)
    for k, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        beta2 = min(rule["beta2_cap"], 1 - k ** -rule["beta2_exponent"])
        square = g**2 + 1e-30
        if factored:
            flat = matrix(path, square)
            R = beta2 * R + (1 - beta2) * flat.mean(axis=1)
            C = beta2 * C + (1 - beta2) * flat.mean(axis=0)
            u = g / np.sqrt(np.outer(R, C) / R.mean()).reshape(g.shape)
        else:
            v = beta2 * v + (1 - beta2) * square
            u = g / np.sqrt(v)
        if rule["update_clip"]:
            u = u / max(1.0, np.sqrt((u**2).mean()) / rule["update_clip"])
        size = max(np.sqrt((p**2).mean()), 1e-3)
        m = rule["beta1"] * m + (1 - rule["beta1"]) * rate * size * u
        p = (1 - rule["weight_decay"] * rate**2) * p - m
    return p


PALM = {"beta1": 0.9, "weight_decay": 1.0, "factored": False, "update_clip": 0.0, "beta2_cap": 1.0}
PALM |= {"beta2_exponent": 0.8, "factored_from": 128}
# The small model's narrow matrices are factored, but a head of six keys is not.
T5 = PALM | {"beta1": 0.0, "weight_decay": 0.0, "factored": True, "factored_from": 8, "update_clip": 1.0}


@pytest.mark.parametrize(
    ("kind", "rate", "hold", "size", "clip", "rule"),
    [
        (np.float32, 1e-2, 10_000, 1.0, 1.0, PALM),
        (np.float64, 1e-2, 10_000, 1.0, 1.0, PALM),
        (np.float32, 1e-1, 10, 1e-3, 1.0, PALM | {"weight_decay": 2.0}),
        (np.float32, 1e-2, 10_000, 1.0, 0.0, T5),
        (np.float64, 1e-2, 10_000, 1.0, 0.0, T5),
        (np.float32, 1e-1, 10, 1.0, 1.0, T5 | {"beta1": 0.8, "weight_decay": 1.0, "update_clip": 0.4}),
        (np.float32, 1e-2, 10_000, 1.0, 0.0, T5 | {"beta2_cap": 0.9, "beta2_exponent": 0.7}),
    ],
    ids=["PaLM", "PaLM in float64", "a falling rate, not clipped", "T5", "T5 in float64", "all there is", "capped"],
)
def test_adafactor(make, draw, kind, rate, hold, size, clip, rule):
    model = make(**MOE)
    config = OptimizerConfig(learning_rate=rate, hold_steps=hold, clip_norm=clip, **rule)
    start, actual = run(model, draw(model), config, size, kind)
    gradients = gradients_of(start, size, clip or np.inf)
    rates = [rate * min(1, np.sqrt(hold / k)) for k in range(1, STEPS + 1)]
    expected = {
        path: separately(numpy_adafactor, path, p, [g[path] for g in gradients], rates, rule)
        for path, p in start.items()
    }
    assert_close(actual, expected)


def test_factored_and_not_are_not_the_same(make, draw):
    model = make(**MOE)
    whole, factored = (
        run(model, draw(model), OptimizerConfig(factored=factored, factored_from=8))[1] for factored in (False, True)
    )
    different = {path for path, error in errors(factored, whole).items() if error > 1e-3}
    assert {path.split("['")[-1][:-2] for path in different} == {"query", "out", "up", "gate", "down", "table"}


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


# --- Adam, Lion, Muon

WARMING = {"schedule": "cosine", "learning_rate": 1e-3, "warmup_steps": 60}
RATES = [1e-3 * k / 60 for k in range(1, STEPS + 1)]


def numpy_adamw(path, p, gradients, rates, beta1, beta2, weight_decay):
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - rate * (m / (1 - beta1**k) / (np.sqrt(v / (1 - beta2**k)) + 1e-8) + weight_decay * p)
    return p


def numpy_lion(path, p, gradients, rates, beta1, beta2, weight_decay):
    """arXiv:2302.06675, program 1."""
    m = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        p = p - rate * (np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * p)
        m = beta2 * m + (1 - beta2) * g
    return p


def numpy_newton_schulz(x):
    """In the form of the singular values: x = U S V^T becomes U f(f(... S)) V^T, f(s) = 3.4445 s - 4.775 s^3 + ..."""
    U, s, Vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return U * s @ Vt


def numpy_muon(path, p, gradients, rates, beta1, beta2, weight_decay):
    """Matrices of blocks: Nesterov momentum 0.95, orthogonal, as long as AdamW's (arXiv:2502.16982, eq. 4)."""
    if "blocks" not in path or "router" in path or matrix(path, p) is None:
        return numpy_adamw(path, p, gradients, rates, beta1, beta2, weight_decay)
    m = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        m = 0.95 * m + g
        x = matrix(path, g + 0.95 * m)
        p = p - rate * (0.2 * np.sqrt(max(x.shape)) * numpy_newton_schulz(x).reshape(p.shape) + weight_decay * p)
    return p


NUMPY = {"adamw": numpy_adamw, "adam": numpy_adamw, "lion": numpy_lion, "muon": numpy_muon}


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        *(("adamw", np.float32, size) for size in (1.0, 1e-3)),
        ("adamw", np.float64, 1.0),
        ("adam", np.float32, 1.0),
        *(("lion", np.float32, size) for size in (1.0, 1e-3)),
        *(("muon", np.float32, size) for size in (1.0, 1e-3)),
        ("muon", np.float64, 1.0),
    ],
)
def test_others(make, draw, name, kind, size):
    """Norm scales, and they alone, do not decay. The rate warms up, so an off-by-one in it would show."""
    model = make(**MOE)
    decay = 0.0 if name == "adam" else 0.3
    betas = {"beta1": 0.8, "beta2": 0.97}
    config = OptimizerConfig(name=name, **WARMING, **betas, weight_decay=decay, clip_norm=0.5)
    start, actual = run(model, draw(model), config, size, kind)
    gradients = gradients_of(start, size, 0.5)
    expected = {
        path: separately(
            NUMPY[name], path, p, [g[path] for g in gradients], RATES, 0.8, 0.97, 0.0 if "scale" in path else decay
        )
        for path, p in start.items()
    }
    assert_close(actual, expected)


def test_muon_is_orthogonal(make, draw):
    """After an update of zeros a kernel's singular values are between 0.6 and 1.3, times 0.2 sqrt(longer side)."""
    model = make(num_kv_heads=8)
    params = jax.tree.map(jnp.zeros_like, draw(model))
    config = OptimizerConfig(name="muon", schedule="constant", learning_rate=1.0, weight_decay=0.0)
    optimizer = make_optimizer(config, make_schedule(config, 10), model)
    grads = draw(model, seed=1)
    updates = leaves(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])
    for path, update in updates.items():
        if "blocks" in path and "norm" not in path:
            for layer in update:
                values = np.linalg.svd(matrix(path, layer), compute_uv=False)
                assert 0.6 < values.min() / (0.2 * np.sqrt(48)) < values.max() / (0.2 * np.sqrt(48)) < 1.3, path


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_sums_are_clipped_as_optax_clips_their_means(limit):
    sums = {"a": jnp.array([3.0, -4.0, 12.0]), "b": jnp.ones((2, 3))}
    means = jax.tree.map(lambda g: g / 7, sums)
    norm = optax.tree.norm(means)
    clip = optax.clip_by_global_norm(limit) if limit else optax.identity()
    wanted = clip.update(means, clip.init(means))[0]
    ours = optimizer_module._clip(limit)
    for known in ({}, {"norm": norm}):
        found, _ = ours.update(sums, ours.init(sums), divisor=jnp.float32(7), **known)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, wanted)


def test_no_gradient_is_clipped_to_none():
    ours, zeros = optimizer_module._clip(1.0), {"a": jnp.zeros(3)}
    np.testing.assert_array_equal(ours.update(zeros, ours.init(zeros), divisor=2.0)[0]["a"], 0)
