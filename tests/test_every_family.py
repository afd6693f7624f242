"""Every family's shipped small model on meshes, in training with all its draws: loss and gradients of one device.

The configurations are those of configs/, with smaller dimensions. What one device computes is compared with other
implementations in tests/convert.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from pathways_lm import configure
from pathways_lm.config import MeshConfig, MoEConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.losses import routed_tokens, routing_loss
from pathways_lm.train.step import gradient_sums

CONFIGS = sorted(path for path in Path("configs").glob("*/*tiny.py"))
SMALL = {"num_layers": 2, "embed_dim": 32, "num_heads": 8, "head_dim": 6, "mlp_dim": 48, "vocab_size": 264}
LIMIT = 1e-5

# Eight rows of packed documents; the last ones end in padding.
RANDOM = np.random.default_rng(0)
TOKENS, SOURCE = (RANDOM.integers(1, 264, (8, 10), dtype=np.int32) for _ in range(2))
SEGMENTS = np.sort(RANDOM.integers(1, 4, (8, 10), dtype=np.int32), axis=1)
SEGMENTS[4:, 7:] = 0
TOKENS[4:, 7:] = 0


def shrunk(path, **changes):
    """The file's model, smaller, with some dropout."""
    model = configure.load(str(path)).model
    kv_heads = {model.num_heads: 8, 1: 1}[model.num_kv_heads]
    moe = replace(model.moe, mlp_dim=0, dispatch=changes.pop("dispatch", model.moe.dispatch))
    small = {**SMALL, "num_kv_heads": kv_heads, "unroll": 1, "dropout": 0.1, "hidden_dropout": 0.1}
    return replace(model, **{**small, "moe": moe, **changes})


def build(config, preset="palm_2d", mesh=(1, 1, 1)):
    data, expert, tensor = mesh
    return Model(config, make_rules(preset, make_mesh(MeshConfig(data=data, expert=expert, tensor=tensor))))


def batch(model):
    rows = Batch(TOKENS, TOKENS, SEGMENTS)
    if model.config.shape == "encoder_decoder":
        rows = rows._replace(encoder_tokens=SOURCE, encoder_segments=SEGMENTS)
    return jax.device_put(rows, model.rules("batch", "length"))


def run(model, params, key=1, **train):
    key = None if key is None else jax.random.key(key)
    compute = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1, **train)))
    return jax.device_get(compute(params, batch(model), key))


def assert_close(actual, expected):
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected[0]))
    wrong = {}
    for (path, e), a in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True):
        name = jax.tree_util.keystr(path)
        # A bias of all keys alike adds the same to every score: its gradient is nothing but rounding.
        scale = largest if "key_bias" in name else np.max(np.abs(e))
        error = np.max(np.abs(a - e))
        if not error <= LIMIT * scale:
            wrong[name] = error / scale
    assert not wrong


MESHES = [("palm_2d", (2, 1, 4)), ("fsdp", (2, 2, 2)), ("tensor_parallel", (1, 4, 2))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_family(path):
    one = build(shrunk(path))
    expected = run(one, one.initialise(0))
    assert np.isfinite(expected[1].nll)
    for preset, mesh in MESHES:
        model = build(shrunk(path), preset, mesh)
        assert_close(run(model, model.initialise(0)), expected)


@pytest.mark.parametrize("remat", ["attention", "block"])
@pytest.mark.parametrize("name", ["switch/tiny", "megatron/gpt2_tiny"])
def test_recomputing_draws_the_same(name, remat):
    """Dropout under scan and remat: the backward pass sees the masks of the forward pass."""
    path = Path(f"configs/{name}.py")
    expected = run(model := build(shrunk(path)), model.initialise(0))
    assert_close(run(model := build(shrunk(path, remat=remat)), model.initialise(0)), expected)


def test_dropout_is_drawn_anew():
    """By step, and not at all without a key."""
    model = build(shrunk("configs/megatron/gpt2_tiny.py"))
    params = model.initialise(0)
    losses = [float(run(model, params, key)[1].nll) for key in (1, 2, None, None)]
    assert len(set(losses)) == 3 and losses[2] == losses[3]


AUXILIARY = MoEConfig(
    num_experts=8, top_k=2, balance_loss=1.0, router_z_loss=1.0, capacity_factor=100.0, eval_capacity_factor=100.0
)


def with_routers(mesh=(1, 1, 1)):
    """Switch, with routers' losses that weigh as much as the likelihood."""
    config = shrunk("configs/switch/tiny.py", init="t5", init_scale=1.0, dropout=0.0, hidden_dropout=0.0)
    return build(replace(config, moe=AUXILIARY), mesh=mesh)


def added(model, microbatches=1):
    """What routers add to the loss, and all gradients."""
    grads, sums = run(model, model.initialise(0), key=None, microbatches=microbatches)
    value = routing_loss(model.config.moe, sums.routing, jax.device_get(routed_tokens(model, batch(model))))
    return grads, value


@pytest.fixture(scope="module")
def auxiliary():
    return added(with_routers())


def test_routers_weigh(auxiliary):
    """The comparison below is of something: two layers' balance losses above 1, and gradients that differ without."""
    grads, value = auxiliary
    assert value > 2
    silent = with_routers()
    silent = Model(replace(silent.config, moe=replace(AUXILIARY, balance_loss=0.0, router_z_loss=0.0)), silent.rules)
    router = lambda grads: grads["encoder"]["blocks"]["layers"]["block_1"]["moe"]["router"]  # noqa: E731
    difference = np.max(np.abs(router(added(silent)[0]) - router(grads)))
    assert difference > 0.3 * np.max(np.abs(router(grads)))


@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    [
        *(((1, 1, 1), M) for M in (2, 4)),
        *(((data, 1, 1), 1) for data in (2, 4, 8)),
        *(((1, expert, 1), 1) for expert in (2, 4, 8)),
        ((2, 2, 1), 2),
    ],
    ids=str,
)
def test_auxiliary_losses(auxiliary, mesh, microbatches):
    """Value and gradients do not depend on microbatches, nor on how sequences and experts are spread."""
    assert_close(added(with_routers(mesh), microbatches), auxiliary)
