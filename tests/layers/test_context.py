"""Sequences that are cut over devices: their order, dropout, and attention with keys that go round."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathways_lm.config import MeshConfig, ModelConfig, TrainConfig
from pathways_lm.errors import ConfigError
from pathways_lm.kernels.attention import attention_weights, spread, weighted_values
from pathways_lm.kernels.zigzag import cut, lay, stand
from pathways_lm.layers import tiles
from pathways_lm.layers.dropout import dropout
from pathways_lm.layers.mask import Places, in_order, visible
from pathways_lm.layers.ring import ring_attention
from pathways_lm.layers.tiles import View
from pathways_lm.mesh import abstract_mesh, make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.plan.hlo import parse
from pathways_lm.plan.program_cost import segments
from pathways_lm.sharding import make_rules
from pathways_lm.train.step import gradient_sums

H = 6


def on(**axes):
    return make_rules("palm_2d", make_mesh(MeshConfig(**{"data": 1, **axes})), ring=True)


def order(length: int, devices: int) -> np.ndarray:
    """Device i has chunks i and 2C-1-i."""
    chunks = np.split(np.arange(length), 2 * devices)
    return np.concatenate([np.concatenate([chunks[i], chunks[2 * devices - 1 - i]]) for i in range(devices)])


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_first_and_last_chunks_lie_together(devices):
    rules, length = on(context=devices), 6 * devices
    rows = jax.device_put(np.arange(2 * length).reshape(2, length), rules("batch", None))
    laid = jax.jit(partial(cut, rules=rules))(rows)
    np.testing.assert_array_equal(laid, np.asarray(rows)[:, order(length, devices)])
    assert {shard.data.shape for shard in laid.addressable_shards} == {(2, length // devices)}
    back = jax.jit(lambda rows: stand(lay(rows, rules), rules))(rows)
    np.testing.assert_array_equal(back, rows)


def test_a_length_without_chunks():
    rules = make_rules("palm_2d", abstract_mesh(MeshConfig(data=1, context=4), 4))
    with pytest.raises(ConfigError, match="a sequence of 12 tokens is not divisible by 8 chunks; 8 or 16 would be"):
        jax.eval_shape(partial(lay, rules=rules), jax.ShapeDtypeStruct((2, 12), jnp.int32))


def test_tokens_draw_the_same_wherever_they_lie():
    x = np.ones((4, 16, 8), np.float32)

    def kept(rules, x):
        placed = jax.device_put(x, rules("batch", "residual_length", "residual"))
        return np.asarray(jax.jit(lambda x: dropout(x, 0.4, jax.random.key(1), rules))(placed))

    everywhere = kept(on(), x)
    assert 0.5 < np.mean(everywhere > 0) < 0.7
    for axes in ({"context": 4}, {"data": 2, "context": 2, "tensor": 2}):
        np.testing.assert_array_equal(kept(on(**axes), x), everywhere[:, order(16, axes["context"])])


def softmax_attention(q, k, v, bias, mask, dy):
    """In float64, with the gradients of sum(y dy): a query that sees nothing gives zeros."""
    q, k, v, dy = (x.astype(np.float64) for x in (q, k, v, dy))
    group = q.shape[2] // k.shape[2]
    k_all, v_all = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k_all) / np.sqrt(q.shape[-1]) + np.transpose(bias, (2, 0, 1))
    scores = np.where(mask[:, None], scores, -np.inf)
    top = np.max(scores, axis=-1, keepdims=True)
    p = np.where(mask[:, None], np.exp(scores - np.where(np.isfinite(top), top, 0)), 0)
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    y = np.einsum("bnts,bsnh->btnh", p, v_all)
    dp = np.einsum("btnh,bsnh->bnts", dy, v_all)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True))
    by_kv = lambda x: x.reshape(*x.shape[:2], -1, group, x.shape[-1]).sum(3)  # noqa: E731
    dq = np.einsum("bnts,bsnh->btnh", ds, k_all) / np.sqrt(q.shape[-1])
    dk = by_kv(np.einsum("bnts,btnh->bsnh", ds, q)) / np.sqrt(q.shape[-1])
    return y, dq, dk, by_kv(np.einsum("bnts,btnh->bsnh", p, dy)), ds.sum(0)


def in_ring(rules, q, k, v, table, queries, keys, causal, window, dy):
    """Output and gradients in the order of the text, of arrays in that order."""
    (T, S), C = (q.shape[1], k.shape[1]), rules.parts("length")
    at_T, at_S = (order(length, C) if C > 1 else np.arange(length) for length in (T, S))
    K = "heads" if k.shape[2] > 1 and k.shape[2] % rules.parts("heads") == 0 else None
    place = lambda x, at, *names: jax.device_put(x[:, at], rules("batch", "length", *names, None))  # noqa: E731
    args = place(q, at_T, "heads"), place(k, at_S, K), place(v, at_S, K), jax.device_put(table, rules(None, "heads"))
    dy = place(dy, at_T, "heads")

    def weighed(args, queries, keys, dy):
        q, k, v, table = args
        laid = jax.tree.map(partial(cut, rules=rules), queries)
        view = View(laid, jax.tree.map(partial(lay, rules=rules), keys), causal, None, max_distance=8, window=window)
        y = ring_attention(q, spread(k, "length", rules), spread(v, "length", rules), table, view, rules, True)
        return jnp.sum(y * dy), y

    whole = jax.tree.map(lambda rows: jax.device_put(rows, rules("batch", None)), (queries, keys))
    gradients, y = jax.jit(jax.grad(weighed, has_aux=True))(args, *whole, dy)
    dq, dk, dv, dtable = jax.device_get(gradients)
    back_T, back_S = np.argsort(at_T), np.argsort(at_S)
    return np.asarray(y)[:, back_T], dq[:, back_T], dk[:, back_S], dv[:, back_S], dtable


@st.composite
def cases(draw):
    """A mesh, and queries and keys of the same or another length."""
    meshes = [{"context": 2}, {"context": 4, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2}]
    axes = draw(st.sampled_from([*meshes, {"context": 1}, {"context": 1, "data": 2, "tensor": 2}]))
    # One device takes any length. With few keys, queries that see one have gradients of rounding alone.
    unit, lengths = (2 * axes["context"], st.integers(1, 4)) if axes["context"] > 1 else (1, st.integers(5, 13))
    T = unit * draw(lengths)
    causal = draw(st.booleans())
    S = T if causal else unit * draw(lengths)
    window = draw(st.integers(0, 5)) if causal and unit == 1 else 0
    prefixed, kv_heads = draw(st.booleans()), draw(st.sampled_from([1, 2, 4]))
    return axes, T, S, causal, window, prefixed, kv_heads, draw(st.integers(0, 2**31))


@settings(max_examples=10)
@given(cases())
def test_ring_is_attention(case):
    """Outputs and every gradient, also on one device, tiles that do not come out even included; with documents,
    prefixes, windows, relative positions, queries that see nothing, and any number of key heads."""
    axes, T, S, causal, window, prefixed, kv_heads, seed = case
    random = np.random.default_rng(seed)
    q, dy = (random.normal(size=(2, T, 4, H)).astype(np.float32) for _ in range(2))
    k, v = (random.normal(size=(2, S, kv_heads, H)).astype(np.float32) for _ in range(2))
    table = random.normal(size=(4, 4)).astype(np.float32)
    documents = [np.sort(random.integers(0, 4, (2, n), dtype=np.int32), axis=1)[:, ::-1].copy() for n in (T, S)]
    if causal:
        documents[1] = documents[0]
    prefix = (random.random((2, S)) < 0.3) if prefixed else None
    queries, keys = in_order(T, documents[0]), in_order(S, documents[1], prefix)
    mask = np.asarray(visible(queries, keys, causal, window))
    buckets = np.asarray(tiles.relative_buckets(np.arange(T)[None], np.arange(S)[None], 4, 8, causal))[0]
    expected = softmax_attention(q, k, v, table[buckets].astype(np.float64), mask, dy)
    dtable = np.zeros(table.shape)
    np.add.at(dtable, buckets, np.transpose(expected[4], (1, 2, 0)))
    with pytest.MonkeyPatch.context() as patch:
        # Several tiles in a chunk, of which the last one overlaps; several blocks, of which the last is filled up.
        patch.setattr(tiles, "BLOCK", 2)
        patch.setattr(tiles, "TILE", 3)
        actual = in_ring(on(**axes), q, k, v, table, queries, keys, causal, window, dy)
    for a, e in zip(actual, (*expected[:4], dtable), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * max(np.abs(e).max(), 1e-3))


def compiled(length: int, ring: bool, gradient: bool = True, **axes):
    """Attention of one sequence a row, compiled and not run."""
    rules = on(**axes)
    B, N, K = 2, 4, 2
    places = in_order(length)

    def described(heads):
        cut_so = rules("batch", "length", "heads", None)
        return jax.ShapeDtypeStruct((B, length, heads, H), jnp.float32, sharding=cut_so)

    def attend(q, k, v, start):
        moved = Places(places.positions_BL + start)
        laid = Places(cut(moved.positions_BL, rules))
        if ring:
            around = Places(lay(moved.positions_BL, rules))
            return ring_attention(q, k, v, None, View(laid, around, True), rules, True)
        k, v = (stand(jax.sharding.reshard(x, rules("batch", None, None, None)), rules) for x in (k, v))
        return weighted_values(attention_weights(q, k, visible(laid, moved, True), None, rules), v, rules)

    call = attend
    if gradient:
        call = jax.grad(lambda *args: jnp.sum(jnp.square(attend(*args))), argnums=(0, 1, 2))
    start = jax.ShapeDtypeStruct((), jnp.int32, sharding=rules())
    return jax.jit(call).lower(described(N), described(K), described(K), start).compile()


def test_memory_grows_with_the_length():
    """And not with its square, as that of gathered keys does: what the compiler says of forward and backward."""
    lengths = (4096, 8192, 16384)
    ring = [compiled(length, True, context=2).memory_analysis().temp_size_in_bytes for length in lengths]
    assert all(after / before < 2.2 for before, after in itertools.pairwise(ring))
    # Beside what one tile takes, twice the length adds twice as much.
    assert ring[2] - ring[1] == pytest.approx(2 * (ring[1] - ring[0]), rel=0.1)
    gathered = [compiled(length, False, context=2).memory_analysis().temp_size_in_bytes for length in lengths[:2]]
    assert gathered[1] > 3.8 * gathered[0]
    assert gathered[0] > 4 * ring[0]


@pytest.mark.parametrize(("axes", "tensor"), [({"data": 2, "context": 4}, 1), ({"context": 4, "tensor": 2}, 2)])
def test_what_goes_round(axes, tensor):
    """Keys and values, each device's part to its neighbour, C-1 times; nothing else is exchanged."""
    length, rules = 512, on(**axes)
    program = parse(compiled(length, True, gradient=False, **axes).as_text())
    found = [(each, s.times) for s in segments(program, dict(rules.mesh.shape)) for each in s.exchanges]
    assert {each.kind for each, _ in found} == {"collective-permute"}
    assert {each.axes for each, _ in found} == {("context",)}
    rows, kv_heads = 2 // axes.get("data", 1), 2 // tensor
    sent = sum(times * each.sent_bytes for each, times in found)
    assert sent == pytest.approx((4 - 1) * 2 * rows * (length / 4) * kv_heads * H * 4, rel=0.02)
    assert sum(times for _, times in found) == 2 * (4 - 1)


def decoder_step(length: int, **changes):
    """Gradients of a small decoder, compiled: its vocabulary is so small that logits do not matter."""
    config = ModelConfig(num_layers=2, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128, vocab_size=260, **changes)
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    rows = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=model.rules("batch", None))
    call = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1)))
    return call.lower(model.abstract, Batch(rows, rows, rows), None).compile()


@pytest.mark.parametrize("remat", ["none", "block"])
def test_a_step_on_one_device_grows_with_the_length(remat):
    """Packed documents; by itself from the length on at which scores would take too much."""
    lengths = (2048, 4096, 8192)
    held = [
        decoder_step(length, attention="blocked", remat=remat).memory_analysis().temp_size_in_bytes
        for length in lengths
    ]
    assert all(after / before < 2.2 for before, after in itertools.pairwise(held))
    scores = 4 * 4 * 8192**2
    assert held[2] < scores / 4
    if remat == "none":
        assert decoder_step(8192).memory_analysis().temp_size_in_bytes == held[2]
        assert decoder_step(8192, attention="plain").memory_analysis().temp_size_in_bytes > scores
