"""Moments: where they lie, how they are rounded, and that a stack of layers is as many arrays."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import keystr
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig, MoEConfig, OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import rules_of
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.optimizers.moments import stochastic_round
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, from_items, initial_state, shardings, to_items
from pathways_lm.train.step import compile_step, make_step

ONE = MeshConfig(data=1)
# Lopsided, with experts on an axis of their own.
EIGHT = MeshConfig(data=2, expert=2, tensor=2)
EXPERTS = {"num_layers": 2, "moe": MoEConfig(num_experts=4, every=1)}
FACTORED = OptimizerConfig(factored=True, factored_from=8, update_clip=1.0, beta1=0.5, schedule="constant")
MUON = OptimizerConfig(name="muon", schedule="constant", learning_rate=1e-2, weight_decay=0.1)


def build(tiny, mesh, config, **changes):
    model = Model(tiny(**changes), rules_of(mesh, make_mesh(mesh)))
    return model, make_optimizer(config, make_schedule(config, 100), model)


def gradients(model, step):
    """Random ones, laid as the parameters."""
    random = np.random.default_rng(step)
    return jax.tree.map(
        lambda p: jax.device_put(random.normal(size=p.shape).astype(np.float32), p.sharding), model.abstract
    )


def updated(model, optimizer, params, steps=5):
    """Parameters and optimizer state after so many updates with random gradients."""

    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    lying = shardings(abstract_state(model, optimizer))
    compiled = jax.jit(update, out_shardings=(lying.params, lying.optimizer))
    state = jax.device_put(optimizer.init(params), lying.optimizer)
    for step in range(steps):
        params, state = compiled(params, state, gradients(model, step))
    return params, state


def assert_close(actual, expected, limit=1e-5):
    wrong = {}
    for (path, e), a in zip(leaves_with_path(jax.device_get(expected)), jax.tree.leaves(actual), strict=True):
        error = np.max(np.abs(np.asarray(a, np.float64) - e)) / np.max(np.abs(e))
        if not error <= limit:
            wrong[keystr(path)] = error
    assert wrong == {}


@pytest.fixture(scope="module")
def alone(tiny, draw):
    """What one device computes, by config."""
    found = {}

    def get(config):
        if config not in found:
            model, optimizer = build(tiny, ONE, config, **EXPERTS)
            found[config] = updated(model, optimizer, draw(model))
        return found[config]

    return get


@pytest.mark.parametrize("zero", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2)), 3])
@pytest.mark.parametrize("config", [FACTORED, MUON], ids=["factored", "muon"])
def test_same_on_eight_devices(tiny, draw, alone, config, zero):
    """Parameters and every moment."""
    model, optimizer = build(tiny, replace(EIGHT, zero=zero), config, **EXPERTS)
    assert_close(updated(model, optimizer, draw(model)), alone(config))


def test_factored_moments_are_cut(tiny):
    """As their parameter is, but for what they are means over."""
    model, optimizer = build(tiny, EIGHT, FACTORED, **EXPERTS)
    moments = abstract_state(model, optimizer).optimizer[1].second_moment
    layers = moments["decoder"]["blocks"]["layers"]

    def told(kernel):
        parts = {"rows": kernel.rows, "columns": kernel.columns}
        return {name: (part.shape, part.sharding.shard_shape(part.shape)) for name, part in parts.items()}

    # Layers, model dimension over data and expert, heads over tensor.
    assert told(layers["attention"]["query"]) == {
        "rows": ((2, 32, 1, 1), (2, 8, 1, 1)),
        "columns": ((2, 1, 8, 6), (2, 1, 4, 6)),
    }
    assert told(layers["moe"]["down"]) == {
        "rows": ((2, 4, 1, 32), (2, 2, 1, 16)),
        "columns": ((2, 4, 48, 1), (2, 2, 24, 1)),
    }
    assert told(moments["embedding"]["table"]) == {"rows": ((1, 32), (1, 8)), "columns": ((264, 1), (132, 1))}
    # Six keys are too few, and a scale is no matrix.
    assert layers["attention"]["key"].shape == (2, 32, 1, 6)
    assert layers["norm"]["scale"].shape == (2, 32)


def test_without_momentum_there_is_none(tiny):
    model, optimizer = build(tiny, ONE, replace(FACTORED, beta1=0.0), **EXPERTS)
    kept = sum(leaf.size for leaf in jax.tree.leaves(abstract_state(model, optimizer).optimizer))
    assert kept < 0.1 * sum(leaf.size for leaf in jax.tree.leaves(model.abstract))


@pytest.mark.parametrize("offload", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", [FACTORED, replace(MUON, moments="bfloat16")], ids=["factored", "muon in bf16"])
def test_saved_and_restored(tiny, tmp_path, config, offload):
    """Two steps, a checkpoint, two more; against four. On eight devices, with the state in either memory."""
    mesh = replace(EIGHT, zero=1, offload=offload)
    model, optimizer = build(tiny, mesh, config, num_layers=2)
    train = TrainConfig(num_steps=4)
    rows = np.random.default_rng(0).integers(1, 264, (8, 12), dtype=np.int32)
    step = compile_step(make_step(model, optimizer, make_schedule(config, 4), train), model, optimizer, causal(rows, 6))
    batch = jax.device_put(causal(rows, 6), model.rules("batch", None))

    def on(state, steps):
        for _ in range(steps):
            state, _ = step(state, batch)
        return state

    expected = on(initial_state(model, optimizer, seed=7), 4)
    store = Store(tmp_path)
    half = on(initial_state(model, optimizer, seed=7), 2)
    store.save(2, to_items(half), {})
    store.wait()
    abstract = to_items(abstract_state(model, optimizer))
    restored = from_items(store.restore(abstract, lambda *problem: pytest.fail(str(problem)))[1])
    store.close()
    moments = [leaf for leaf in jax.tree.leaves(restored.optimizer) if leaf.shape]
    assert {leaf.sharding.memory_kind for leaf in moments} == {"pinned_host" if offload else "device"}
    resumed = on(restored, 2)
    bits = lambda state: jax.tree.map(np.ndarray.tobytes, jax.device_get(state))  # noqa: E731
    assert bits(resumed) == bits(expected)


@pytest.mark.parametrize(
    "config",
    [OptimizerConfig(), FACTORED, OptimizerConfig(name="lion"), MUON],
    ids=["PaLM's", "factored", "lion", "muon"],
)
def test_a_stack_is_as_many_arrays(tiny, draw, config):
    """Two layers give what models of one layer and of the other give. Muon in float64: its rounding grows with it."""
    moe = MoEConfig(num_experts=2, every=1)
    kind = np.float64 if config is MUON else np.float32
    config = replace(config, clip_norm=0.0)
    model, optimizer = build(tiny, ONE, config, num_layers=2, moe=moe)
    params, grads = draw(model), gradients(model, 0)
    both = updates_of(optimizer, params, grads, kind)["decoder"]["blocks"]["layers"]
    _, own = build(tiny, ONE, config, num_layers=1, moe=moe)
    for layer in range(2):

        def of_layer(tree, layer=layer):
            blocks = jax.tree.map(lambda leaf: leaf[layer : layer + 1], tree["decoder"]["blocks"])
            return {**tree, "decoder": {**tree["decoder"], "blocks": blocks}}

        alone = updates_of(own, of_layer(params), of_layer(grads), kind)["decoder"]["blocks"]["layers"]
        taken = jax.tree.map(lambda leaf, layer=layer: leaf[layer], both)
        assert_close(taken, jax.tree.map(lambda leaf: leaf[0], alone), 1e-6)


def updates_of(optimizer, params, grads, kind=np.float32):
    with jax.enable_x64(kind is np.float64):
        grads, params = (
            jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, kind), leaf.sharding), tree)
            for tree in (grads, params)
        )
        return jax.device_get(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])


# --- bf16


@pytest.mark.parametrize("name", ["adafactor", "adamw", "lion", "muon"])
def test_bf16_is_near_fp32(tiny, draw, name):
    """Ten updates: stored in half the bytes, and the parameters move as in fp32 to within the rounding of moments.

    Lion moves by a sign, which rounding turns where a moment is near zero: most are the same.
    """
    config = OptimizerConfig(name=name, schedule="constant", learning_rate=1e-3, weight_decay=0.1)
    model, optimizer = build(tiny, ONE, config)
    params = draw(model)
    wide, state = updated(model, optimizer, params, steps=10)
    narrow, rounded = updated(*build(tiny, ONE, replace(config, moments="bfloat16")), params, steps=10)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.shape) for tree in (state, rounded)]
    assert sizes[0] == 2 * sizes[1]
    for start, e, a in zip(*(jax.tree.leaves(jax.device_get(tree)) for tree in (params, wide, narrow)), strict=True):
        assert np.linalg.norm(a - e) <= (0.2 if name == "lion" else 0.01) * np.linalg.norm(e - start)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_bf16_trains_as_fp32(tiny, name):
    """Forty steps on one batch take the same loss off, to one part in a hundred of what is left."""
    rows = np.random.default_rng(0).integers(1, 264, (8, 12), dtype=np.int32)
    config = OptimizerConfig(name=name, schedule="constant", learning_rate=1e-2, weight_decay=0.0)

    def losses(config):
        model, optimizer = build(tiny, ONE, config, num_layers=1)
        make = make_step(model, optimizer, make_schedule(config, 40), TrainConfig(num_steps=40))
        step = compile_step(make, model, optimizer, causal(rows, 6))
        batch = jax.device_put(causal(rows, 6), model.rules("batch", None))
        state, told = initial_state(model, optimizer, seed=7), []
        for _ in range(40):
            state, metrics = step(state, batch)
            told.append(float(metrics["loss"]))
        return np.array(told)

    wide, narrow = losses(config), losses(replace(config, moments="bfloat16"))
    assert wide[-1] < 0.7 * wide[0]
    assert np.any(narrow != wide)
    np.testing.assert_allclose(narrow, wide, rtol=0.01)


def test_bf16_moves_slowly_too(tiny, draw):
    """At beta2 = 0.999 a second moment falls to that of smaller gradients, where rounding to the nearest would keep it:
    after 2,000 updates with gradients of 0.1, from 1.0 it is 0.01 + 0.99 x 0.999^2000 = 0.144."""
    kind = {"name": "adamw", "schedule": "constant", "beta2": 0.999, "moments": "bfloat16"}
    config = OptimizerConfig(**kind, learning_rate=1e-6, weight_decay=0.0, clip_norm=0.0)
    model, optimizer = build(tiny, ONE, config, num_layers=1)
    params = draw(model)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.1), params)
    state = optimizer.init(params)
    ones = lambda leaf: jnp.ones_like(leaf) if leaf.shape else leaf  # noqa: E731
    state = jax.tree.map(ones, state)

    def update(state, _):
        return optimizer.update(grads, state, params)[1], None

    state = jax.jit(lambda state: jax.lax.scan(update, state, None, length=2000)[0])(state)
    second = jax.device_get(state[1].inner[0].nu["embedding"]["table"]).astype(np.float64)
    # 264 x 32 draws, each within a few in a hundred of it.
    np.testing.assert_allclose(second.mean(), 0.01 + 0.99 * 0.999**2000, rtol=0.01)
    assert second.dtype != jnp.float32 and second.std() < 0.1 * second.mean()


def test_stochastic_rounding():
    """Of 2^16 draws each neighbour has its share; what bf16 has, and what is not finite, stays."""
    mesh = make_mesh(ONE)
    low, high = (np.float32(jnp.bfloat16(value)) for value in (1.0, 1.0078125))
    x = np.full(2**16, low + 0.25 * (high - low), np.float32)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None))
    drawn = np.asarray(jax.jit(stochastic_round)(jax.device_put(x, whole), jax.random.key(1)), np.float32)
    assert set(drawn) == {low, high}
    # Four standard deviations of a share of 65,536.
    assert abs(np.mean(drawn == high) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2**16)
    same = np.array([0.0, -1.5, np.inf, -np.inf, np.nan, 3.0e38], np.float32)
    same[-1] = np.float32(jnp.bfloat16(same[-1]))
    kept = jax.jit(stochastic_round)(jax.device_put(same, whole), jax.random.key(2))
    np.testing.assert_array_equal(np.asarray(kept, np.float32), same)
