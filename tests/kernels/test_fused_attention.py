"""The kernels of TPUs and GPUs, step by step on CPUs, beside softmax attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.kernels import splash, triton
from pathways_lm.kernels.attention import spread
from pathways_lm.kernels.triton import triton_attention
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

B, T, N, H = 2, 256, 4, 64


def softmax_attention(q, k, v, mask, dy):
    """In float64, with the gradients of sum(y dy)."""
    q, k, v, dy = (x.astype(np.float64) for x in (q, k, v, dy))
    group = q.shape[2] // k.shape[2]
    k_all, v_all = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.where(mask[:, None], np.einsum("btnh,bsnh->bnts", q, k_all) / np.sqrt(H), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("btnh,bsnh->bnts", dy, v_all)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) / np.sqrt(H)
    by_kv = lambda x: x.reshape(*x.shape[:2], -1, group, H).sum(3)  # noqa: E731
    dk, dv = (by_kv(np.einsum("bnts,btnh->bsnh", *pair)) for pair in ((ds, q), (p, dy)))
    return np.einsum("bnts,bsnh->btnh", p, v_all), np.einsum("bnts,bsnh->btnh", ds, k_all), dk, dv


@pytest.mark.parametrize(
    ("kernel", "kv_heads", "causal", "window", "packed", "axes"),
    [
        ("splash", 1, True, 0, True, {"data": 2, "tensor": 2}),
        ("splash", 4, True, 0, False, {}),
        ("splash", 2, True, 100, True, {"tensor": 2}),
        ("splash", 4, False, 0, True, {"data": 2, "tensor": 2}),
        ("splash in two kernels", 1, True, 0, True, {}),
        ("triton", 1, True, 0, True, {"data": 2, "tensor": 2}),
        ("triton", 4, False, 0, True, {}),
        ("triton", 2, True, 0, False, {"tensor": 2}),
    ],
)
def test_it_is_attention(kernel, kv_heads, causal, window, packed, axes, monkeypatch):
    """Output and gradients; blocks that nobody sees, and heads of keys fewer than parts, included."""
    monkeypatch.setattr(splash, "BLOCK", 128)
    monkeypatch.setattr(splash, "FUSED_BLOCKS", 1 if "two" in kernel else 8)
    rules = make_rules("palm_2d", make_mesh(MeshConfig(**{"data": 1, **axes})))
    random = np.random.default_rng(kv_heads)
    q, dy = (random.normal(size=(B, T, N, H)).astype(np.float32) for _ in range(2))
    k, v = (random.normal(size=(B, T, kv_heads, H)).astype(np.float32) for _ in range(2))
    rows = np.sort(random.integers(0, 4, (B, T), dtype=np.int32), axis=1) if packed else np.ones((B, T), np.int32)
    at = np.arange(T)
    mask = rows[:, :, None] == rows[:, None]
    if causal:
        mask &= at[None, :, None] >= at[None, None]
    if window:
        mask &= at[None, :, None] - at[None, None] < window
    expected = softmax_attention(q, k, v, mask, dy)

    def weighed(q, k, v, rows, dy):
        rows_BT = jax.sharding.reshard(rows, rules("batch", "length"))
        segments = (rows_BT, rows) if packed else None
        k, v = (spread(each, "length", rules) for each in (k, v))
        if kernel == "triton":
            y = triton_attention(q, k, v, rows_BT if packed else None, causal, rules, scaled=True, interpret=True)
        else:
            y = splash.splash_attention(q, k, v, segments, causal, window, rules, scaled=True, interpret=True)
        return jnp.sum(y * dy), y

    heads = "heads" if kv_heads % rules.parts("heads") == 0 and kv_heads > 1 else None
    place = lambda x, name: jax.device_put(x, rules("batch", "length", name, None))  # noqa: E731
    given = place(q, "heads"), place(k, heads), place(v, heads), jax.device_put(rows, rules("batch", None))
    gradient = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))
    gradients, y = jax.device_get(gradient(*given, place(dy, "heads")))
    for actual, wanted in zip((y, *gradients), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 700), (True, 513), (False, 0)])
def test_blocks_that_are_visited(causal, window):
    """As the kernel's own tables of its grid have them."""
    length = 2048
    kernel = splash._kernel(1, length, length, causal, window, True)
    grid = kernel.fwd_mask_info.block_mask
    count = (length // 512) ** 2 if grid is None else int(np.sum(np.asarray(grid) != 0))
    assert splash.visited(length, length, causal, window) == count
    if causal and not window:
        assert count == 4 * 5 // 2


def test_a_block_divides_the_length():
    assert [splash.block_of(length) for length in (128, 384, 640, 768, 2048)] == [128, 384, 128, 384, 512]


@pytest.mark.parametrize(
    ("head_dim", "itemsize", "capability", "blocks"),
    [
        (128, 2, "9.0", (128, 64, 64, 4)),
        (256, 2, "9.0", (128, 64, 64, 8)),
        (256, 4, "9.0", (64, 64, 32, None)),
        (128, 2, "8.0", (128, 128, 32, None)),
        (256, 2, "8.0", (64, 64, 32, None)),
    ],
)
def test_blocks_of_triton(head_dim, itemsize, capability, blocks):
    """Larger ones only where they were tried: other cards have less shared memory, and fp32 takes twice as much."""
    assert triton._blocks(head_dim, itemsize, capability) == blocks
