"""One update: what it reports, what it keeps, and that the old state's memory is given away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.train.losses import loss_sums
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, initial_state, shardings
from pathways_lm.train.step import compile_step, make_step

OPTIMIZER = OptimizerConfig(schedule="cosine", learning_rate=1e-2, warmup_steps=10)
TRAIN = TrainConfig(num_steps=40, precision="bf16", microbatches=2)

# Rows of the numbers 1 to 12, the first padded; 6 ends a document.
END = 6
ROWS = np.tile(np.arange(1, 13, dtype=np.int32), (8, 1))
ROWS[0, 4:] = 0


@pytest.fixture(scope="module")
def parts(make):
    """Model, optimizer and compiled step; two data by four tensor devices."""
    model = make("palm_2d", 2, 4)
    schedule = make_schedule(OPTIMIZER, TRAIN.num_steps)
    optimizer = make_optimizer(OPTIMIZER, schedule, model)
    return (
        model,
        optimizer,
        compile_step(make_step(model, optimizer, schedule, TRAIN), model, optimizer, causal(ROWS, END)),
    )


@pytest.fixture(scope="module")
def start(parts):
    """The first state, on the host: a step gives its argument's memory away."""
    model, optimizer, _ = parts
    return jax.device_get(initial_state(model, optimizer, seed=7))


def place(parts, start):
    model, optimizer, _ = parts
    return jax.device_put(start, shardings(abstract_state(model, optimizer)))


def tokens(model):
    return jax.device_put(causal(ROWS, END), model.rules("batch", None))


def test_first_state(parts, start):
    model, optimizer, _ = parts
    assert start.step == 0 and start.step.dtype == np.int32
    assert start.rng.shape == (2,) and start.rng.dtype == np.uint32
    assert {leaf.dtype for leaf in jax.tree.leaves(start.params)} == {np.dtype(np.float32)}
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(start.optimizer))
    abstract = abstract_state(model, optimizer)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == expected


def test_moments_lie_as_parameters(parts):
    """Under each parameter's own spec: an optimizer that forgets it would hold whole copies."""
    model, optimizer, _ = parts
    abstract = abstract_state(model, optimizer)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(abstract.params)]
    moments = [leaf.sharding.spec for leaf in jax.tree.leaves(abstract.optimizer) if leaf.shape]
    assert moments == specs + specs
    assert specs[0] == jax.sharding.PartitionSpec(None, ("data", "expert", "context"), None, None)


def test_old_state_is_given_away(parts, start):
    model, _, step = parts
    state = place(parts, start)
    batch = tokens(model)
    new, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params) + jax.tree.leaves(state.optimizer))
    assert not batch.tokens.is_deleted()
    assert shardings(new) == shardings(place(parts, start))
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype(jnp.float32)}


def test_same_step_same_bits(parts, start):
    model, _, step = parts
    first, second = (jax.device_get(step(place(parts, start), tokens(model))) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_metrics(parts, start):
    model, _, step = parts
    new, metrics = jax.device_get(step(place(parts, start), tokens(model)))
    forward = jax.jit(lambda params, tokens: loss_sums(model, POLICIES["bf16"], params, tokens)[1])
    sums = jax.device_get(forward(place(parts, start).params, tokens(model)))
    assert metrics["batch_tokens"] == 7 * 12 + 4
    np.testing.assert_allclose(metrics["loss"], sums.nll / 88, rtol=1e-4)
    np.testing.assert_allclose(metrics["z_loss"], TRAIN.z_loss * sums.log_z_squared / 88, rtol=1e-4)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 / 10, rtol=1e-6)
    length = np.sqrt(sum(np.sum(np.square(p, dtype=np.float64)) for p in jax.tree.leaves(new.params)))
    np.testing.assert_allclose(metrics["param_norm"], length, rtol=1e-6)
    assert new.step == 1
    np.testing.assert_array_equal(new.rng, start.rng)


def test_counting_is_learned(parts, start):
    """Twelve numbers in a row, forty times: from ln 264 = 5.6 nats or more to well below one."""
    model, _, step = parts
    state, losses = place(parts, start), []
    for _ in range(TRAIN.num_steps):
        state, metrics = step(state, tokens(model))
        losses.append(float(metrics["loss"]))
    assert losses[0] > np.log(264) - 0.5
    assert losses[-1] < 1.0
    assert int(state.step) == TRAIN.num_steps
