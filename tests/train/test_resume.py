"""A run taken up from its checkpoint goes on in every bit as if it had not been left."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from pathways_lm.checkpoint.retention import Keep
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.train.log import Silence
from pathways_lm.train.loop import Hooks
from pathways_lm.train.meter import Workload
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, from_items, initial_state, to_items
from pathways_lm.train.step import compile_step, make_step

ROWS, LENGTH, STEPS = 16, 10, 9
END = 7


class Rows(Silence):
    """Keeps the loss of every step."""

    def __init__(self):
        self.losses = {}

    def train(self, step, figures):
        self.losses[step] = figures["loss"]


def batches(first: int, sharding):
    for step in itertools.count(first):
        tokens = np.random.default_rng(step).integers(0, 264, (ROWS, LENGTH), dtype=np.int32)
        yield jax.device_put(causal(tokens, END), sharding)


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        (OptimizerConfig(name="adamw", schedule="cosine", learning_rate=3e-3, warmup_steps=3), ("fsdp", 4, 2)),
        (OptimizerConfig(name="adafactor", hold_steps=2), ("palm_2d", 2, 4)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_resumed_equals_uninterrupted(make, make_loop, tmp_path, optimizer, layout):
    model = make(*layout, num_layers=2)
    config = TrainConfig(num_steps=STEPS, log_every=1, eval_every=100, checkpoint_every=4, microbatches=2)
    schedule = make_schedule(optimizer, STEPS)
    transformation = make_optimizer(optimizer, schedule, model)
    step = compile_step(
        make_step(model, transformation, schedule, config),
        model,
        transformation,
        causal(np.zeros((ROWS, LENGTH), np.int32), END),
    )
    hooks = Hooks(lambda params: {}, lambda params, rng, step: [("", "")], {})
    workload = Workload(tokens_per_row=LENGTH, flops_per_token=1.0, peak_flops=None)

    def go(state, store, log):
        feed = batches(int(state.step), model.rules("batch", None))
        return jax.device_get(make_loop(config, state, step, feed, store, log, workload, hooks, ROWS).run()[0])

    store, whole = Store(tmp_path, Keep(5)), Rows()
    expected = go(initial_state(model, transformation, 0), store, whole)
    store.close()
    # As a kill after the checkpoint of step 4 leaves it.
    for later in (8, 9):
        shutil.rmtree(tmp_path / "checkpoints" / str(later))
    store, rest = Store(tmp_path, Keep(5)), Rows()
    restored = store.restore(
        to_items(abstract_state(model, transformation)), lambda *problem: pytest.fail(str(problem))
    )
    found = go(from_items(restored[1]), store, rest)
    store.close()
    assert list(rest.losses) == list(range(5, 10))
    assert rest.losses == {step: whole.losses[step] for step in range(5, 10)}
    assert jax.tree.map(np.ndarray.tobytes, found) == jax.tree.map(np.ndarray.tobytes, expected)
