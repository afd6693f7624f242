"""The whole layer against the loop in numpy, its three dispatches against one another, on one device and on meshes."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from pathways_lm.config import MeshConfig, MoEConfig
from pathways_lm.errors import ConfigError
from pathways_lm.layers.moe.layer import MoE
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import PRESETS, make_rules, on_mesh

SPEC = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

B, L, D, E, F = 8, 12, 32, 8, 48
AMPLE = 100.0
X = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
# Rows end in padding, each at another place, and one has none.
VALID = np.arange(L)[None] < (L - np.arange(B))[:, None]
# Large enough that routers are of different minds.
KERNELS = {
    name: np.random.default_rng(number).normal(size=shape).astype(np.float32) / np.sqrt(shape[-2])
    for number, (name, shape) in enumerate(
        {"router": (D, E), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}.items()
    )
}
KERNELS["router"] = KERNELS["router"] * 3


def build(tiny, mesh=(1, 1, 1), preset="palm_2d", activation="relu", context=1, **moe):
    data, expert, tensor = mesh
    rules = make_rules(preset, make_mesh(MeshConfig(data=data, expert=expert, context=context, tensor=tensor)))
    shape = "encoder" if moe.get("router") == "expert_choice" else "decoder"
    config = tiny(
        num_layers=2, shape=shape, embed_dim=D, mlp_dim=F, activation=activation, moe=MoEConfig(num_experts=E, **moe)
    )
    # Never made, only described: kernels come from numpy.
    return nnx.eval_shape(lambda: MoE(config, nnx.Rngs(0), rules))


def run(layer, x=X, key=None):
    """Output, sums and gates, and gradients of kernels and input of a sum that weighs every output differently."""
    graphdef, state = nnx.split(layer, nnx.Param)
    rules = layer.rules
    kernels = {
        path[0]: jax.device_put(KERNELS[path[0]], on_mesh(variable.get_value(), rules.mesh).sharding)
        for path, variable in nnx.to_flat_state(state)
    }
    # Devices that share a sequence have its first and last quarter, or those between.
    order = np.arange(L) if rules.parts("length") == 1 else np.array([0, 1, 2, 9, 10, 11, 3, 4, 5, 6, 7, 8])
    x = jax.device_put(x[:, order], rules("batch", "length", None))
    weigh = np.cos(np.arange(X.size)).reshape(X.shape).astype(np.float32)[:, order]

    def scored(kernels, x):
        bound = nnx.merge(graphdef, nnx.State({name: nnx.Param(value) for name, value in kernels.items()}))
        y, sums, gates = bound(x, jnp.asarray(VALID), key)
        return jnp.sum(y * weigh), (y, sums, gates)

    (dkernels, dx), (y, *told) = jax.device_get(jax.jit(jax.grad(scored, argnums=(0, 1), has_aux=True))(kernels, x))
    back = np.argsort(order)
    return (y[:, back], *told), (dkernels, dx[:, back])


def assert_close(actual, expected, limit=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - e)) <= limit * np.max(np.abs(e))


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def ffn(activation):
    def one(expert, row):
        up, down = KERNELS["up"][expert].astype(np.float64), KERNELS["down"][expert].astype(np.float64)
        if activation == "swiglu":
            gate = row @ KERNELS["gate"][expert].astype(np.float64)
            return (gate / (1 + np.exp(-gate)) * (row @ up)) @ down
        return {"relu": lambda h: np.maximum(h, 0), "gelu": gelu}[activation](row @ up) @ down

    return one


@pytest.mark.parametrize("dispatch", ["einsum", "all_to_all"])
@pytest.mark.parametrize(
    ("activation", "moe"),
    [
        ("relu", {"renormalise": False, "eval_capacity_factor": 1.0, "min_capacity": 1}),
        ("gelu", {"top_k": 2, "eval_capacity_factor": 0.5, "min_capacity": 1}),
        ("swiglu", {"top_k": 3, "eval_capacity_factor": AMPLE}),
        ("relu", {"renormalise": False, "eval_capacity_factor": 1.0, "group_tokens": 4 * L}),
        ("relu", {"router": "expert_choice", "eval_capacity_factor": 1.0, "min_capacity": 1}),
    ],
    ids=["Switch", "GShard", "Mixtral", "groups of rows", "experts choose"],
)
def test_equals_the_loop(tiny, dispatch, activation, moe):
    layer = build(tiny, activation=activation, dispatch=dispatch, **moe)
    config = layer.config
    (y, sums, gates), _ = run(layer)
    size = max(config.group_tokens, L)
    rows, valid = X.astype(np.float64).reshape(-1, size, D), VALID.reshape(-1, size)
    expected, dropped = [], 0
    for group, real in zip(rows, valid, strict=True):
        logits = group @ KERNELS["router"].astype(np.float64)
        places = reference.places_of(config.eval_capacity_factor, E, size, config.min_capacity)
        if config.router == "expert_choice":
            choices = reference.experts_choose(logits, real, places)
        else:
            choices = reference.route(logits, real, config.top_k, places, config.renormalise)
        dropped += sum(not kept for token in choices for *_, kept in token)
        expected.append(reference.mixture(group, choices, ffn(activation)))
    expected = np.concatenate(expected).reshape(B, L, D)
    assert_close(y, expected)
    assert sums.dropped == dropped
    # What is neither served nor a token is exactly zero.
    np.testing.assert_array_equal(gates.sum(-1) == 0, (y == 0).all(-1))
    assert not y[~VALID].any()
    if config.router == "top_k" and config.eval_capacity_factor <= 1:
        assert dropped > 0


AMPLY = {
    top_k: {"eval_capacity_factor": AMPLE, "top_k": top_k, "renormalise": top_k > 1, "activation": "swiglu"}
    for top_k in (1, 2)
}
MESHES = [(1, 1, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 4, 2)]


@pytest.fixture(scope="module")
def by_einsum(tiny):
    """With room for all, on one device."""
    return {top_k: run(build(tiny, dispatch="einsum", **ample)) for top_k, ample in AMPLY.items()}


@pytest.mark.parametrize(("top_k", "mesh"), [*((1, mesh) for mesh in MESHES), (2, (1, 1, 1)), (2, (2, 2, 2))], ids=str)
@pytest.mark.parametrize("dispatch", ["einsum", "all_to_all", "dropless"])
def test_dispatches_agree(tiny, by_einsum, dispatch, mesh, top_k):
    """Three ways on six meshes give one result: outputs, sums, gates and gradients."""
    assert by_einsum[top_k][0][1].dropped == 0
    assert_close(run(build(tiny, mesh, dispatch=dispatch, **AMPLY[top_k])), by_einsum[top_k])


CROWDED = {"top_k": 2, "second_expert": "random", "jitter": 0.05, "dropout": 0.3, "min_capacity": 1}


@pytest.fixture(scope="module")
def crowded(tiny):
    return run(build(tiny, **CROWDED), key=jax.random.key(3))


@pytest.mark.parametrize(
    ("dispatch", "preset", "mesh"),
    [
        *(("einsum", preset, (2, 2, 2)) for preset in sorted(PRESETS)),
        *(("all_to_all", preset, (2, 2, 2)) for preset in sorted(PRESETS)),
        ("all_to_all", "palm_2d", (1, 8, 1)),
    ],
    ids=str,
)
def test_drops_are_the_same_on_meshes(tiny, crowded, dispatch, preset, mesh):
    """In training: jitter, second choices and dropout are drawn alike, and who finds no place does not change."""
    assert 0 < crowded[0][1].dropped < crowded[0][1].choices
    assert_close(run(build(tiny, mesh, preset, dispatch=dispatch, **CROWDED), key=jax.random.key(3)), crowded)


@pytest.mark.parametrize("dispatch", ["einsum", "all_to_all"])
def test_sequences_over_devices(tiny, dispatch):
    """Groups of half a row, of which each device has a half; one place for each expert, which two devices share."""
    moe = {**CROWDED, "group_tokens": 6, "capacity_factor": 1.0}
    key = jax.random.key(3)
    expected = run(build(tiny, **moe), key=key)
    assert_close(run(build(tiny, (1, 2, 2), context=2, dispatch=dispatch, **moe), key=key), expected)


@pytest.mark.parametrize(("mesh", "context"), [((2, 2, 1), 1), ((1, 2, 2), 1), ((1, 2, 2), 2)], ids=str)
def test_dropless_dropout(tiny, mesh, context):
    """Another shape of mask than with places, but the same on every mesh."""
    moe = {"top_k": 2, "dropout": 0.3, "dispatch": "dropless"}
    key = jax.random.key(3)
    assert_close(run(build(tiny, mesh, context=context, **moe), key=key), run(build(tiny, **moe), key=key))


def test_padding_takes_no_place(tiny):
    """Whatever stands in padding, the rest is the same."""
    layer = build(tiny, eval_capacity_factor=0.5, min_capacity=1)
    (expected, *_), _ = run(layer)
    (y, *_), _ = run(layer, np.where(VALID[..., None], X, np.float32(7)))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("tokens", [4, 3 * L, 4 * L])
def test_groups_do_not_depend_on_devices(tiny, tokens):
    """Groups smaller and larger than a row; three rows do not divide eight, so two make a group."""
    moe = {"group_tokens": tokens, "capacity_factor": 0.5, "min_capacity": 1}
    key = jax.random.key(0)
    (y, sums, _), _ = run(build(tiny, **moe), key=key)
    (other, others, _), _ = run(build(tiny, (2, 1, 2), **moe), key=key)
    assert_close((other, others), (y, sums))
    assert sums.dropped > 0


def test_too_few_groups(tiny):
    with pytest.raises(ConfigError, match="group_tokens=96 makes 1 groups of 8 sequences of 12 tokens, which 2 parts"):
        run(build(tiny, (2, 1, 1), group_tokens=8 * L), key=jax.random.key(0))


def test_router_is_exact_in_bf16(tiny):
    """Bodies in bf16, routing in fp32: gates are those of an input that bf16 holds exactly (Switch section 2.4)."""
    exact = np.asarray(jnp.asarray(X, jnp.bfloat16), np.float32)
    (*_, gates), _ = run(build(tiny, renormalise=False, eval_capacity_factor=AMPLE), jnp.asarray(exact, jnp.bfloat16))
    assert gates.dtype == jnp.float32
    logits = exact.astype(np.float64) @ KERNELS["router"].astype(np.float64)
    expected = np.array([[reference.softmax(token) for token in row] for row in logits])
    np.testing.assert_allclose(gates.max(-1)[VALID], expected.max(-1)[VALID], rtol=1e-5)
