"""Updates that are not finite, and the scale of fp16's loss."""

from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.mesh import make_mesh
from pathways_lm.train import step as step_module
from pathways_lm.train.guard import changed, first_guard, next_guard
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.precision import stochastic_round
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, initial_state, shardings
from pathways_lm.train.step import compile_step, make_step

OPTIMIZER = OptimizerConfig(name="adamw", schedule="cosine", learning_rate=1e-2, hold_steps=5)
END = 6
ROWS = np.tile(np.arange(1, 13, dtype=np.int32), (8, 1))


class Run:
    """A model that learns to count, under a precision, on two by four devices."""

    def __init__(self, make, precision, dtype=jnp.float32, layout=("palm_2d", 2, 4), **config):
        self.model = make(*layout, dtype=jnp.dtype(dtype))
        train = TrainConfig(num_steps=60, precision=precision, **config)
        schedule = make_schedule(OPTIMIZER, 60)
        self.optimizer = make_optimizer(OPTIMIZER, schedule, self.model)
        self._make = lambda: make_step(self.model, self.optimizer, schedule, train)
        self.state = jax.device_get(initial_state(self.model, self.optimizer, 7, train.loss_scale))
        self.batch = jax.device_put(causal(ROWS, END), self.model.rules("batch", None))

    @cached_property
    def step(self):
        """Compiled when it is first needed: some only look at how a run begins."""
        return compile_step(self._make(), self.model, self.optimizer, causal(ROWS, END))

    def go(self, count) -> list[dict]:
        """The state, on the host, becomes that after so many steps."""
        state = jax.device_put(self.state, shardings(abstract_state(self.model, self.optimizer)))
        told = []
        for _ in range(count):
            state, metrics = self.step(state, self.batch)
            told.append(jax.device_get(metrics))
        self.state = jax.device_get(state)
        return told


@pytest.fixture(scope="module")
def in_fp32(make):
    """What sixty steps in fp32 tell, by layout."""
    return cache(lambda *layout: Run(make, "fp32", layout=layout).go(60))


@pytest.mark.parametrize("layout", [("palm_2d", 2, 4), ("fsdp", 8, 1)])
def test_fp16_trains_as_fp32(make, in_fp32, layout):
    """To within 1%, with the scale it is given by itself, which rises on the way."""
    exact = in_fp32(*layout)
    half = Run(make, "fp16", layout=layout, loss_scale_interval=30).go(60)
    assert exact[-1]["loss"] < 0.5 * exact[0]["loss"]
    assert half[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.01)
    assert half[-1]["loss_scale"] > half[0]["loss_scale"]


def test_a_scale_that_is_too_large_comes_down(make):
    told = Run(make, "fp16", loss_scale=2.0**40).go(40)
    skipped = int(told[-1]["skipped"])
    assert 10 < skipped < 30
    assert told[-1]["loss_scale"] == 2.0 ** (40 - skipped)
    assert told[-1]["loss"] < told[0]["loss"]


def test_an_overflow_halves_the_scale_and_skips_one_step(make):
    run = Run(make, "fp16", loss_scale=256.0)
    run.go(3)
    before = run.state
    # Gradients times 2^60 are beyond fp16 whatever they are.
    run.state = before._replace(guard=before.guard._replace(scale=np.float32(2.0**60)))
    told = run.go(1)[0]
    assert not np.isfinite(told["grad_norm"])
    assert (run.state.guard.scale, run.state.guard.skipped, run.state.step) == (2.0**59, 1, 4)
    for kept in ("params", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(run.state, kept), getattr(before, kept))
    run.state = run.state._replace(guard=run.state.guard._replace(scale=np.float32(256)))
    run.go(1)
    assert run.state.guard.skipped == 1
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (run.state.params, before.params)), strict=True))


@pytest.mark.parametrize(("value", "layout"), [(np.nan, ("palm_2d", 2, 4)), (np.inf, ("palm_2d", 1, 1))])
def test_an_update_that_is_not_finite_is_skipped(make, monkeypatch, value, layout):
    """In fp32, too. The run goes on as if the step had not been, but for its number."""
    plain = step_module.gradient_sums

    def poisoned(model, config, params, batch, key, scale=1.0):
        grads, sums = plain(model, config, params, batch, key, scale)
        # Told apart by the dropout key, which is folded with the step.
        bad = jax.random.key_data(key)[0] == poison
        return jax.tree.map(lambda g: jnp.where(bad, g * value, g), grads), sums

    run = Run(make, "fp32", layout=layout)
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(run.state.rng)), 2)
    poison = jax.random.key_data(key)[0]
    monkeypatch.setattr(step_module, "gradient_sums", poisoned)
    run = Run(make, "fp32", layout=layout)
    run.go(2)
    before = run.state
    run.go(1)
    assert (run.state.guard.skipped, run.state.step) == (1, 3)
    for kept in ("params", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(run.state, kept), getattr(before, kept))
    told = run.go(1)[0]
    assert np.isfinite(told["grad_norm"]) and run.state.guard.skipped == 1


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.sampled_from([1.0, 64.0]))
def test_scale_by_hand(finite, interval, floor):
    config = TrainConfig(num_steps=1, loss_scale=512.0, loss_scale_interval=interval, loss_scale_floor=floor)
    guard, scale, good = first_guard(512.0), 512.0, 0
    for each in finite:
        guard = next_guard(config, guard, jnp.asarray(each))
        if each:
            good += 1
            if good == interval:
                scale, good = scale * 2, 0
        else:
            scale, good = max(scale / 2, floor), 0
        assert (float(guard.scale), int(guard.good)) == (scale, good)
    assert int(guard.skipped) == finite.count(False)


def test_rounding_by_chance():
    """To one of the two neighbours, and right on average: 100,000 draws of each of five numbers."""
    values = np.array([1.0, 1.001, -3.3333, 1e-20, 77.7], np.float32)
    many = jnp.asarray(np.repeat(values[:, None], 100_000, axis=1))
    rounded = np.asarray(jax.jit(stochastic_round)(many, jax.random.key(0)))
    for value, row in zip(values, rounded.astype(np.float64), strict=True):
        below = np.float32(value).view(np.uint32) & np.uint32(0xFFFF0000)
        neighbours = {float(bits.view(np.float32)) for bits in (below, below + np.uint32(0x10000))}
        assert set(row) <= neighbours
        spread = abs(max(neighbours) - min(neighbours))
        assert abs(row.mean() - value) <= 4 * spread / 2 / np.sqrt(100_000)
    assert set(rounded[0].astype(float)) == {1.0}


def test_bf16_pure(make, in_fp32):
    """Stored in bf16 but for norms, and learning on where rounding to nearest would stand still."""
    run = Run(make, "bf16_pure", jnp.bfloat16)
    types = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree.leaves_with_path(run.state.params)}
    assert {dtype for path, dtype in types.items() if "scale" not in path} == {np.dtype(jnp.bfloat16)}
    assert {dtype for path, dtype in types.items() if "scale" in path} == {np.dtype(np.float32)}
    exact, pure = in_fp32("palm_2d", 2, 4), run.go(60)
    assert pure[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.05)


def test_small_updates_are_not_lost():
    """A thousand updates of a hundredth of a last place each move a parameter by ten, on average."""
    params = {"w": jnp.ones(4096, jnp.bfloat16)}
    update = {"w": jnp.full(4096, 2.0**-7 / 100, jnp.float32)}
    apply = jax.jit(step_module.apply)
    for number in range(1000):
        params = apply(params, update, jax.random.key(number))
    moved = (np.asarray(params["w"], np.float64) - 1) / 2.0**-7
    assert moved.mean() == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("finite", [True, False])
def test_a_tree_is_changed_where_the_update_is_finite(devices, finite):
    """By a branch on one CPU, number by number on several devices."""
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    old = {"a": jnp.arange(4.0), "b": jnp.float32(3)}

    def change(tree):
        return jax.tree.map(lambda leaf: leaf * 2 + 1, tree)

    run = jax.jit(lambda finite, old: changed(finite, change, old, mesh))
    assert ("stablehlo.case" in run.lower(finite, old).as_text()) == (devices == 1)
    np.testing.assert_array_equal(run(finite, old)["a"], [1, 3, 5, 7] if finite else [0, 1, 2, 3])
    np.testing.assert_array_equal(run(finite, old)["b"], 7 if finite else 3)
