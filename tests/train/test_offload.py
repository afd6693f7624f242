"""What lies in the host's memory changes no number."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import rules_of
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, from_items, initial_state, to_items
from pathways_lm.train.step import compile_step, gradient_sums, make_step

END, STEPS = 6, 3
ROWS = np.random.default_rng(0).integers(1, 264, (8, 12), dtype=np.int32)


def parts(tiny, offload, remat):
    mesh = MeshConfig(data=2, tensor=4, offload=offload)
    model = Model(tiny(remat=remat), rules_of(mesh, make_mesh(mesh)))
    config = OptimizerConfig(name="adamw", schedule="cosine", learning_rate=1e-2, warmup_steps=1)
    schedule = make_schedule(config, STEPS)
    transformation = make_optimizer(config, schedule, model)
    step = make_step(model, transformation, schedule, TrainConfig(num_steps=STEPS, microbatches=2))
    return model, transformation, compile_step(step, model, transformation, causal(ROWS, END))


def trained(model, transformation, step):
    state = initial_state(model, transformation, seed=7)
    batch = jax.device_put(causal(ROWS, END), model.rules("batch", None))
    for _ in range(STEPS):
        state, _ = step(state, batch)
    return state


def kinds(moments):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(moments) if leaf.shape}


def bits(state):
    return jax.tree.map(np.ndarray.tobytes, jax.device_get(state))


def test_same_bits(tiny, tmp_path):
    """After three updates, and after a checkpoint, from which the state comes back to where it lay."""
    usual = trained(*parts(tiny, offload=False, remat="block"))
    model, transformation, step = parts(tiny, offload=True, remat="offload")
    state = trained(model, transformation, step)
    assert kinds(usual.optimizer) == kinds(state.params) == {"device"}
    assert kinds(state.optimizer) == {"pinned_host"}
    assert bits(state) == bits(usual)

    store = Store(tmp_path)
    store.save(STEPS, to_items(state), {})
    store.wait()
    abstract = to_items(abstract_state(model, transformation))
    restored = from_items(store.restore(abstract, lambda *problem: pytest.fail(str(problem)))[1])
    store.close()
    assert kinds(restored.optimizer) == {"pinned_host"}
    assert bits(restored) == bits(usual)


def test_kept_inputs_go_to_the_host(tiny):
    """The loop forward gives a stack of three layers' inputs in the host's memory, and no other array goes there."""

    def in_host(remat):
        model = Model(tiny(remat=remat), rules_of(MeshConfig(data=1), make_mesh(MeshConfig(data=1))))
        batch = jax.device_put(causal(ROWS, END), model.rules("batch", None))
        gradients = partial(gradient_sums, model, TrainConfig(num_steps=1))
        program = str(jax.make_jaxpr(gradients)(model.abstract, batch, None))
        shapes = re.findall(r"<host>\[([^\]]*)\]", program)
        return {tuple(int(size) for size in re.findall(r"(?:^|,)(\d+)", shape)) for shape in shapes}

    assert in_host("block") == set()
    rows, length = ROWS.shape
    assert in_host("offload") == {(rows, length, 32), (3, rows, length, 32)}
