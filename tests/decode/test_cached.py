"""A few tokens at a time with a cache, as all at once without one: every family, uneven prompts, across pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config.model import MoEConfig
from pathways_lm.decode import forward
from pathways_lm.decode.forward import Forward, one_by_one
from pathways_lm.layers.attention import coded, decoded
from pathways_lm.models.batch import Batch

# Capacity for every token: in generation none is dropped.
EXPERTS = MoEConfig(num_experts=4, top_k=2, every=2, dispatch="dropless")
T5 = {"shape": "encoder_decoder", "block": "pre_norm", "norm": "rms", "positions": "relative", "activation": "relu"}
FAMILIES = {
    "palm": {"num_layers": 2},
    "gpt2": {
        "num_layers": 2,
        "block": "pre_norm",
        "positions": "learned",
        "max_length": 32,
        "bias": True,
        "num_kv_heads": 8,
        "activation": "gelu_tanh",
    },
    "llama": {"num_layers": 2, "block": "pre_norm", "norm": "rms", "num_kv_heads": 2},
    "glam": {"num_layers": 2, "block": "pre_norm", "positions": "relative_per_layer", "moe": EXPERTS},
    "t5": {**T5, "num_layers": 2, "num_kv_heads": 8, "tied_head": False},
    "switch": {**T5, "num_layers": 2, "num_kv_heads": 8, "moe": MoEConfig(num_experts=4, dispatch="dropless")},
}
LENGTHS = np.array([17, 1, 4, 8, 2, 16, 5, 13])
READ = np.array([9, 3, 12, 1, 7, 12, 5, 10])
LONGEST = 18


def text(rng, lengths, width):
    """Rows of tokens, and where they stand; -1 is padding."""
    at = np.where(np.arange(width) < lengths[:, None], np.arange(width), -1).astype(np.int32)
    return np.where(at >= 0, rng.integers(2, 250, at.shape), 0).astype(np.int32), at


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "tensor": 4}], ids=["one device", "eight"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_equal_uncached_ones(make, draw, family, mesh):
    # Layers one by one are what CPUs do, the stack what other machines do.
    check(make, draw, FAMILIES[family], mesh, listed=not mesh)


@pytest.mark.parametrize("listed", [True, False])
def test_a_prefix_that_is_seen_both_ways(make, draw, listed):
    check(make, draw, FAMILIES["palm"], {"data": 4, "tensor": 2}, listed, both_ways=True)


def test_stack_on_one_device_and_list_on_eight(make, draw):
    check(make, draw, FAMILIES["t5"], {}, listed=False)
    check(make, draw, FAMILIES["glam"], {"data": 4, "tensor": 2}, listed=True)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_a_window(make, draw, positions):
    """Eight slots, of which the oldest are written over, for a model that sees eight positions."""
    check(make, draw, {**FAMILIES["llama"], "positions": positions, "window": 8}, {}, listed=True)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2e-2), ("int8", 2e-2)])
def test_smaller_caches(make, draw, dtype, bound):
    """Keys and values rounded to 8 bits of mantissa, or to 127 steps: logits to two digits."""
    check(make, draw, FAMILIES["llama"], {}, listed=True, dtype=dtype, bound=bound)
    check(make, draw, FAMILIES["t5"], {"data": 2, "tensor": 4}, listed=False, dtype=dtype, bound=bound)


def test_eight_bits():
    """No number is off by more than half a step, the largest of a head is kept, and nothing stays nothing."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    x[1, 2, 3] = 0
    codes = coded(x)
    found, step = np.asarray(decoded(codes, jnp.float32)), np.abs(x).max(-1, keepdims=True) / 127
    assert codes.codes_BKSH.dtype == jnp.int8
    assert np.all(np.abs(found - x) <= step / 2 * (1 + 1e-5))
    np.testing.assert_allclose(np.abs(found).max(-1), np.abs(x).max(-1), rtol=1e-6)


def check(make, draw, changes, mesh, listed, both_ways=False, dtype="float32", bound=1e-5):
    """The prompt in pieces of 6, of which the last is full for some rows only, then steps of one token."""
    model = make(**mesh, **changes).with_whole_sequences()
    params, rng = draw(model, 1), np.random.default_rng(0)
    tokens, at = text(rng, LENGTHS, LONGEST)
    pair = model.config.shape == "encoder_decoder"
    read, read_at = text(rng, READ, 12) if pair else (None, None)
    # A prefix is what is read at once: the first six.
    prefix = (at >= 0) & (at < 6) if both_ways else None
    rows = lambda array: None if array is None else jax.device_put(array, model.rules("batch", None))  # noqa: E731
    segments = (at >= 0).astype(np.int32)
    batch = Batch(
        *map(rows, (tokens, tokens, segments, read, None if read is None else (read_at >= 0).astype(np.int32), prefix))
    )
    expected = np.asarray(jax.jit(lambda params, batch: model.bind(params)(batch).logits_BLV)(params, batch))
    expected = np.where((at >= 0)[..., None], expected, 0)

    forward = Forward(model, jnp.dtype(dtype), listed)
    weights, caches = forward.weights(params), forward.caches

    def go_on(weights, tokens, at, cache, whole=False):
        x, cache = forward.extend(weights, tokens, at, cache, whole)
        return forward.logits(weights, x), cache

    go_on = jax.jit(go_on, static_argnames="whole")
    slots = model.config.window or LONGEST + 6
    empty = jax.jit(lambda: caches.empty(8, slots, 12 if pair else 0), out_shardings=caches.shardings(pair))
    cache = empty()
    if pair:
        cache = jax.jit(forward.read)(weights, rows(read), rows(read_at), cache)
    found = np.zeros_like(expected)
    cuts = [(0, 6), (6, 12), *((start, start + 1) for start in range(12, LONGEST))]
    for start, stop in cuts:
        piece = rows(tokens[:, start:stop]), rows(at[:, start:stop])
        logits, cache = go_on(weights, *piece, cache, whole=both_ways and start == 0)
        found[:, start:stop] = np.where((at[:, start:stop] >= 0)[..., None], np.asarray(logits), 0)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= bound, error
    assert int(cache.used) == LONGEST


@pytest.mark.parametrize(
    ("kind", "times", "listed"), [("cpu", 0.0, True), ("tpu", 100.0, False), ("gpu", 2.0, False), ("gpu", 3.0, True)]
)
def test_where_layers_are_taken_apart(make, monkeypatch, kind, times, listed):
    """Always on CPUs, never on TPUs, and on GPUs that have room for the copy: a quarter is left for other things."""
    monkeypatch.setattr(forward, "platform", lambda mesh: kind)
    model = make(**FAMILIES["palm"])
    layers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.abstract["decoder"]["blocks"]))
    assert one_by_one(model, times * layers) == listed
