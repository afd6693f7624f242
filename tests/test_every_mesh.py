"""The same numbers on every mesh: parameters, loss, gradients and updates against one device, in fp32.

The expectation is the program on one device, which tests/models compares with numpy.
"""

from functools import partial

import jax
import numpy as np
import pytest

from pathways_lm.config import OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.sharding import PRESETS
from pathways_lm.train.guard import first_guard
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import TrainState, abstract_state, shardings
from pathways_lm.train.step import compile_step, gradient_sums, make_step

MESHES = [(1, 8), (2, 4), (4, 2), (8, 1)]
LIMIT = 1e-5
# Documents end here, so that most rows hold several.
END = 7


def batch(rows: int = 16, length: int = 16) -> np.ndarray:
    """Random tokens; every row but the first ends in padding, each at another place."""
    tokens = np.random.default_rng(0).integers(1, 264, (rows, length), dtype=np.int32)
    for row in range(rows):
        tokens[row, length - row % length :] = 0
    return tokens


def relative_errors(actual, expected) -> dict[str, float]:
    """max |a - e| / max |e| of each array of two equal trees."""
    actual, expected = jax.device_get((actual, expected))
    # Of what should be 0 everywhere, as counters of mishaps are, the error itself.
    error = jax.tree.map(lambda a, e: float(np.max(np.abs(a - e)) / (np.max(np.abs(e)) or 1.0)), actual, expected)
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(error)}


def assert_close(actual, expected) -> None:
    errors = relative_errors(actual, expected)
    too_far = {path: value for path, value in errors.items() if not value <= LIMIT}
    assert errors and not too_far


def specs(arrays):
    """Partition specs without what follows the last cut dimension: P(None) and P() say the same."""

    def cut(array):
        entries = list(array.sharding.spec)
        while entries and entries[-1] is None:
            entries.pop()
        return str(entries)

    return jax.tree.map(cut, arrays)


def gradients(model, params, **train):
    """Gradients of the parameters, and the sums of the batch."""
    placed = jax.device_put(causal(batch(), END), model.rules("batch", None))
    return jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=10, **train)))(params, placed, None)


@pytest.fixture(scope="module")
def on_one_device(make, draw):
    model = make()
    return gradients(model, draw(model))


@pytest.mark.parametrize(("data", "tensor"), MESHES)
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_loss_and_gradients(make, draw, on_one_device, preset, data, tensor):
    model = make(preset, data, tensor)
    params = draw(model)
    grads, sums = gradients(model, params)
    assert_close(sums, on_one_device[1])
    assert_close(grads, on_one_device[0])
    # Else the optimizer would have to move them each step.
    assert specs(grads) == specs(params)


@pytest.mark.parametrize(("preset", "data", "tensor"), [("palm_2d", 2, 4), ("fsdp", 4, 2), ("tensor_parallel", 2, 4)])
def test_recomputing_blocks(make, draw, on_one_device, preset, data, tensor):
    model = make(preset, data, tensor, remat="block")
    assert_close(gradients(model, draw(model)), on_one_device)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize(("preset", "data", "tensor"), [("palm_2d", 4, 2), ("fsdp", 2, 4)])
def test_microbatches(make, draw, on_one_device, preset, data, tensor, zero):
    """Two parts of eight rows, one for each device under fsdp, against all at once on one device."""
    model = make(preset, data, tensor, zero=zero)
    assert_close(gradients(model, draw(model), microbatches=2), on_one_device)


def test_initial_parameters_are_equal(make):
    """In every bit: a run may be repeated on another machine."""
    expected = make().initialise(3)
    for model in (make("palm_2d", 2, 4), make("fsdp", 4, 2)):
        params = model.initialise(3)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        assert specs(params) == specs(model.abstract)


def three_updates(model, params, config: OptimizerConfig):
    train = TrainConfig(num_steps=10)
    schedule = make_schedule(config, train.num_steps)
    optimizer = make_optimizer(config, schedule, model)
    step = compile_step(make_step(model, optimizer, schedule, train), model, optimizer, causal(batch(), END))
    start = TrainState(np.int32(0), params, optimizer.init(params), np.zeros(2, np.uint32), first_guard(1.0))
    state = jax.device_put(start, shardings(abstract_state(model, optimizer)))
    for number in range(3):
        tokens = causal(np.roll(batch(), number, axis=1), END)
        state, metrics = step(state, jax.device_put(tokens, model.rules("batch", None)))
    return state.params, metrics


# Both divide a gradient by its own size: where it is near zero, rounding decides its sign, and the
# error of a parameter is a share of the rate. So each at a rate that is used with it.
OPTIMIZERS = [OptimizerConfig(name="adafactor"), OptimizerConfig(name="adamw", learning_rate=3e-4)]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: config.name)
def test_three_updates(make, draw, config):
    one, several = make(), make("palm_2d", 2, 4)
    assert_close(three_updates(several, draw(several), config), three_updates(one, draw(one), config))
