"""Every family's shipped small model on meshes, in training with all its draws: loss and gradients of one device.

The configurations are those of configs/, with smaller dimensions. What one device computes is compared with other
implementations in tests/convert.
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.tree_util import keystr
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from pathways_lm import configure
from pathways_lm.config import MeshConfig, MoEConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.losses import routed_tokens, routing_loss
from pathways_lm.train.step import gradient_sums

CONFIGS = sorted(path for path in Path("configs").glob("*/*tiny.py"))
SMALL = {"embed_dim": 32, "num_heads": 8, "head_dim": 6, "mlp_dim": 48, "vocab_size": 264}
LIMIT = 1e-5

# Eight rows of packed documents; the last ones end in padding.
RANDOM = np.random.default_rng(0)
TOKENS, SOURCE = (RANDOM.integers(1, 264, (8, 12), dtype=np.int32) for _ in range(2))
SEGMENTS = np.sort(RANDOM.integers(1, 4, (8, 12), dtype=np.int32), axis=1)
SEGMENTS[4:, 7:] = 0
TOKENS[4:, 7:] = 0
PREFIX = RANDOM.random((8, 12)) < 0.2


def shrunk(path, **changes):
    """The file's model, smaller, with some dropout."""
    model = configure.load(str(path)).model
    kv_heads = {model.num_heads: 8, 1: 1}[model.num_kv_heads]
    moe = replace(model.moe, mlp_dim=0, dispatch=changes.pop("dispatch", model.moe.dispatch))
    small = {**SMALL, "num_layers": max(2, moe.every), "num_kv_heads": kv_heads, "unroll": 1}
    small |= {"num_encoder_layers": 0, "dropout": 0.1, "hidden_dropout": 0.1}
    return replace(model, **{**small, "moe": moe, **changes})


def build(config, preset="palm_2d", mesh=(1, 1, 1), context=1, ring=False):
    """A mesh is data x expert x tensor, or pod x data x expert x tensor."""
    pod, data, expert, tensor = (1, *mesh)[-4:]
    on = make_mesh(MeshConfig(pod=pod, data=data, expert=expert, context=context, tensor=tensor))
    return Model(config, make_rules(preset, on, ring=ring))


def batch(model):
    rows = Batch(TOKENS, TOKENS, SEGMENTS, prefix=PREFIX if model.config.shape == "decoder" else None)
    if model.config.shape == "encoder_decoder":
        rows = rows._replace(encoder_tokens=SOURCE, encoder_segments=SEGMENTS)
    return jax.device_put(rows, model.rules("batch", None))


def run(model, params, key=1, **train):
    key = None if key is None else jax.random.key(key)
    compute = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1, **train)))
    return jax.device_get(compute(params, batch(model), key))


def assert_close(actual, expected):
    expected, actual = ({keystr(path): leaf for path, leaf in leaves_with_path(tree)} for tree in (expected, actual))
    assert expected.keys() == actual.keys()
    wrong = {}
    for name, e in expected.items():
        # What biases of queries and keys do to one score they nearly undo at the others, so that rounding shows: their
        # gradients are measured by those of their kernels, sums of the same terms with weights of about one.
        measure = expected[name.replace("query_bias", "query").replace("key_bias", "key")]
        error = np.max(np.abs(actual[name] - e))
        if not error <= LIMIT * np.max(np.abs(measure)):
            wrong[name] = error
    assert not wrong


@pytest.fixture(scope="module")
def alone(draw):
    """What one device computes of a file's model, by path."""

    @cache
    def compute(path):
        model = build(shrunk(path))
        return run(model, draw(model))

    return compute


MESHES = [("palm_2d", (1, 2, 2), 2), ("fsdp", (2, 1, 2, 2), 1)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_family(draw, alone, path):
    expected = alone(path)
    assert np.isfinite(expected[1].nll)
    for preset, mesh, context in MESHES:
        model = build(shrunk(path), preset, mesh, context)
        assert_close(run(model, draw(model)), expected)


@pytest.mark.parametrize(
    ("name", "preset", "mesh"),
    [("palm/tiny", "palm_2d", (2, 1, 2)), ("t5/tiny", "sequence_parallel", (2, 1, 2))],
)
def test_keys_that_go_round(draw, name, preset, mesh):
    """Prefixes and packed documents, relative positions, and a decoder that looks at an encoder."""
    config = shrunk(Path(f"configs/{name}.py"), dropout=0.0, hidden_dropout=0.0)
    expected = run(one := build(config), draw(one), key=None)
    model = build(config, preset, mesh, context=2, ring=True)
    assert_close(run(model, draw(model), key=None), expected)


@pytest.mark.parametrize("remat", ["attention", "block"])
@pytest.mark.parametrize("name", ["switch/tiny", "megatron/gpt2_tiny"])
def test_recomputing_draws_the_same(draw, alone, name, remat):
    """Dropout under scan and remat: the backward pass sees the masks of the forward pass."""
    path = Path(f"configs/{name}.py")
    assert_close(run(model := build(shrunk(path, remat=remat)), draw(model)), alone(path))


def test_dropout_is_drawn_anew(draw):
    """By step, and not at all without a key."""
    model = build(shrunk("configs/megatron/gpt2_tiny.py"))
    params = draw(model)
    compute = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1)))
    losses = [float(compute(params, batch(model), jax.random.key(step))[1].nll) for step in (1, 2, 1)]
    without = float(run(model, params, key=None)[1].nll)
    assert losses[0] == losses[2]
    assert len({*losses, without}) == 3


AUXILIARY = MoEConfig(
    num_experts=8,
    top_k=2,
    every=1,
    balance_loss=1.0,
    router_z_loss=1.0,
    capacity_factor=100.0,
    eval_capacity_factor=100.0,
)


def with_routers(mesh=(1, 1, 1), **moe):
    """A decoder with two layers of experts, whose losses weigh as much as the likelihood."""
    config = shrunk("configs/glam/tiny.py", dropout=0.0, hidden_dropout=0.0)
    return build(replace(config, moe=replace(AUXILIARY, **moe)), mesh=mesh)


def added(model, params, microbatches=1):
    """What routers add to the loss, and all gradients."""
    grads, sums = run(model, params, key=None, microbatches=microbatches)
    value = routing_loss(model.config.moe, sums.routing, jax.device_get(routed_tokens(model, batch(model))))
    return grads, value


@pytest.fixture(scope="module")
def auxiliary(draw):
    model = with_routers()
    return added(model, draw(model))


def test_routers_weigh(draw, auxiliary):
    """The comparison below is of something: two layers' balance losses above 1, and gradients that differ without."""
    grads, value = auxiliary
    assert value > 2
    silent = with_routers(balance_loss=0.0, router_z_loss=0.0)
    router = lambda grads: grads["decoder"]["blocks"]["layers"]["moe"]["router"]  # noqa: E731
    difference = np.max(np.abs(router(added(silent, draw(silent))[0]) - router(grads)))
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
def test_auxiliary_losses(draw, auxiliary, mesh, microbatches):
    """Value and gradients do not depend on microbatches, nor on how sequences and experts are spread."""
    model = with_routers(mesh)
    assert_close(added(model, draw(model), microbatches), auxiliary)
