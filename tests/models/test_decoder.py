"""The decoder against PaLM written in numpy from the paper's equations (arXiv:2204.02311, section 2)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import TrainConfig
from pathways_lm.models.batch import Batch
from pathways_lm.models.tower import Layers
from pathways_lm.train.step import gradient_sums


def layer_norm(x, scale, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale


def swish(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def turn(head, position, base):
    """Rotary position of one head [H]: the pair (i, i + H/2) is a complex number, turned by position / base^(2i/H)."""
    half = head.size // 2
    angle = position * base ** (-2 * np.arange(half) / head.size)
    turned = (head[:half] + 1j * head[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def attention(h, weights, base):
    """Multi-query: each head of each position looks at its own position and those before, h is [L, D]."""
    length, heads = h.shape[0], weights["query"].shape[1]
    keys = [turn(h[s] @ weights["key"][:, 0], s, base) for s in range(length)]
    values = [h[s] @ weights["value"][:, 0] for s in range(length)]
    y = np.zeros_like(h)
    for t in range(length):
        for n in range(heads):
            query = turn(h[t] @ weights["query"][:, n], t, base)
            looks = softmax(np.array([query @ keys[s] for s in range(t + 1)]) / np.sqrt(query.size))
            y[t] += sum(look * value for look, value in zip(looks, values, strict=False)) @ weights["out"][n]
    return y


def palm(params, tokens, config):
    """Logits [L, V] of one sequence, in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), jax.device_get(params))
    table, epsilon = params["embedding"]["table"], config.norm_epsilon
    x = table[tokens]
    for number in range(config.num_layers):
        layer = jax.tree.map(lambda p, number=number: p[number], params["decoder"]["blocks"]["layers"])
        h, mlp = layer_norm(x, layer["norm"]["scale"], epsilon), layer["mlp"]
        x = x + (swish(h @ mlp["gate"]) * (h @ mlp["up"])) @ mlp["down"]
        x = x + attention(h, layer["attention"], config.rope_base)
    return layer_norm(x, params["decoder"]["norm"]["scale"], epsilon) @ table.T / np.sqrt(config.embed_dim)


TOKENS = np.random.default_rng(1).integers(0, 264, (2, 12), dtype=np.int32)


def logits(model, params, tokens):
    placed = jax.device_put(Batch(tokens, tokens), model.rules("batch", None))
    return np.asarray(jax.jit(lambda params, batch: model.bind(params)(batch).logits_BLV)(params, placed))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_base": 50.0, "norm_epsilon": 0.3, "num_heads": 3, "head_dim": 10, "num_layers": 2},
        {"remat": "attention", "unroll": 2},
    ],
    ids=["plain", "other constants", "recomputed and unrolled"],
)
def test_logits(make, draw, changes):
    model = make(**changes)
    params = draw(model)
    expected = np.stack([palm(params, row, model.config) for row in TOKENS])
    error = np.abs(logits(model, params, TOKENS) - expected).max() / np.abs(expected).max()
    assert error <= 1e-5


def test_no_position_sees_a_later_one(make, draw):
    model = make()
    params = draw(model)
    before = logits(model, params, TOKENS)
    for changed in (1, 6, 11):
        tokens = TOKENS.copy()
        tokens[:, changed] = (tokens[:, changed] + 100) % 264
        after = logits(model, params, tokens)
        np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
        assert np.all(np.abs(after - before)[:, changed:].max(-1) > 0)


def test_extend_continues_a_cached_prefix(make, draw):
    """Five tokens, then two, then one padded: as all of them at once. Slots lie in no order and some are empty."""
    model = make().with_whole_sequences()
    params, config = draw(model), model.config
    expected = np.stack([palm(params, row, config) for row in TOKENS])

    @jax.jit
    def extend(tokens, positions, cached, cached_at):
        shape, keys_at = model.bind(params), jnp.concatenate([cached_at, positions], axis=1)
        x, told = shape.extend(tokens, positions, keys_at, Layers(cached))
        # In a cache slots lie inside their head.
        return shape.project(x).logits(), jax.tree.map(lambda new: jnp.swapaxes(new, 2, 3), told.fresh)

    def positions(*numbers):
        return jnp.broadcast_to(jnp.array(numbers, jnp.int32), (2, len(numbers)))

    empty = jnp.full((config.num_layers, 2, 1, 3, config.head_dim), 100.0)
    first, fresh = extend(TOKENS[:, :5], positions(0, 1, 2, 3, 4), (empty, empty), positions(-1, -1, -1))
    np.testing.assert_allclose(first, expected[:, :5], atol=1e-5 * np.abs(expected).max())

    order = np.array([3, 0, 4, 1, 2])
    shuffled = jax.tree.map(lambda kept: jnp.concatenate([kept[:, :, :, order], empty], axis=3), fresh)
    tokens = np.concatenate([TOKENS[:, 5:7], TOKENS[:, :1]], axis=1)
    second, _ = extend(tokens, positions(5, 6, -1), shuffled, positions(3, 0, 4, 1, 2, -1, -1, -1))
    np.testing.assert_allclose(second[:, :2], expected[:, 5:7], atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def without_recomputing(make, draw):
    return gradients(make, draw)


def gradients(make, draw, **changes):
    model = make(**changes)
    batch = jax.device_put(Batch(TOKENS, TOKENS), model.rules("batch", None))
    return jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1)))(draw(model), batch, None)


@pytest.mark.parametrize(("remat", "unroll"), [("attention", 1), ("none", 2), ("block", 9)])
def test_recomputing_and_unrolling_change_nothing(make, draw, without_recomputing, remat, unroll):
    """Two does not divide the three layers, and nine is more than there are."""
    actual = gradients(make, draw, remat=remat, unroll=unroll)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * np.abs(e).max()), actual, without_recomputing
    )


def test_recomputing_saves_memory(make):
    """In bytes of temporaries of the compiled gradients. Of a recomputed block only its input is kept."""

    def temporary_bytes(remat):
        model = make(num_layers=16, remat=remat)
        tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32, sharding=model.rules("batch", None))
        lowered = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1))).lower(
            model.abstract, Batch(tokens, tokens), None
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    none, attention, block = (temporary_bytes(remat) for remat in ("none", "attention", "block"))
    # Layers, sequences, queries, keys, heads, bytes: kept at least once where attention is not recomputed.
    scores = 16 * 4 * 64 * 64 * 8 * 4
    assert attention <= none - scores
    assert block < 0.5 * attention
