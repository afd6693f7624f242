"""MKL on CPUs: products, ragged products and attention, beside numpy and plain JAX."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import MeshConfig
from pathways_lm.kernels.attention import attention
from pathways_lm.kernels.contract import contract
from pathways_lm.kernels.mkl import library, products
from pathways_lm.kernels.mkl.attention import attend
from pathways_lm.kernels.ragged import ragged_product
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

random = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def loaded(folder):
    said = library.load(folder)
    if "MKL " not in said or "no MKL" in said:
        pytest.skip(said)


def draw(*shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def turn(x: np.ndarray, turned: bool) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(x, -1, -2)) if turned else x


# --- products


@pytest.mark.parametrize("left_turned", [False, True])
@pytest.mark.parametrize("right_turned", [False, True])
@pytest.mark.parametrize(
    "shape", [(37, 50, 70), (1, 50, 70), (37, 50, 1), (300, 260, 17), (17, 260, 300), (600, 512, 600)]
)
@pytest.mark.parametrize("batch", [(), (3,), (2, 5)])
def test_products(loaded, left_turned, right_turned, shape, batch):
    rows, summed, columns = shape
    left, right = draw(*batch, rows, summed), draw(*batch, summed, columns)
    operands = turn(left, left_turned), turn(right, right_turned)
    y = jax.jit(lambda left, right: products.product(left, right, left_turned, right_turned))(*operands)
    np.testing.assert_allclose(y, left.astype(np.float64) @ right, atol=2e-5 * np.sqrt(summed))


@pytest.mark.parametrize("shape", [(2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 3, 4, 5)])
def test_products_of_nothing(loaded, shape):
    batch, rows, summed, columns = shape
    left, right = draw(batch, rows, summed), draw(batch, summed, columns)
    y = jax.jit(lambda a, b: products.product(a, b, False, False))(left, right)
    np.testing.assert_array_equal(y, np.zeros((batch, rows, columns)))


@pytest.mark.parametrize(("rows", "summed", "columns"), [(0, 4, 5), (6, 0, 5), (6, 4, 0)])
def test_ragged_products_of_nothing(loaded, rows, summed, columns):
    sizes = jnp.array([rows, 0])
    y = jax.jit(products.ragged)(draw(rows, summed), draw(2, summed, columns), sizes)
    np.testing.assert_array_equal(y, np.zeros((rows, columns)))
    dkernels = jax.jit(products.ragged_gradient)(draw(rows, summed), draw(rows, columns), sizes)
    assert dkernels.shape == (2, summed, columns)
    assert rows or not np.any(dkernels)


def test_products_mapped_over_one_operand(loaded):
    left, right = draw(4, 7, 5), draw(5, 6)
    y = jax.jit(jax.vmap(lambda a, b: products.product(a, b, False, False), in_axes=(0, None)))(left, right)
    np.testing.assert_allclose(y, left @ right, atol=1e-5)


@pytest.mark.parametrize(
    ("subscripts", "left", "right"),
    [
        ("bld,dnh->blnh", (2, 9, 16), (16, 3, 4)),
        ("blnh,nhd->bld", (2, 9, 3, 4), (3, 4, 16)),
        ("bld,vd->blv", (2, 9, 16), (30, 16)),
        ("bld,dv->blv", (2, 9, 16), (16, 30)),
        ("btkgh,bskh->bktgs", (2, 9, 1, 3, 4), (2, 7, 1, 4)),
        ("btkgh,bskh->bktgs", (2, 9, 2, 3, 4), (2, 7, 2, 4)),
        ("bktgs,bskh->btkgh", (2, 2, 9, 3, 7), (2, 7, 2, 4)),
        ("ecd,edf->ecf", (3, 8, 5), (3, 5, 6)),
        ("bld,blf->df", (2, 9, 16), (2, 9, 6)),
    ],
)
def test_contract_multiplies_by_it(loaded, subscripts, left, right):
    """Values and gradients; JAX's einsum is the other one."""
    left, right = draw(*left), draw(*right)
    y = np.einsum(subscripts, left, right)
    dy = draw(*y.shape)

    def ours(left, right):
        return contract(subscripts, left, right, None)

    def both(f):
        return jax.jit(lambda left, right, dy: (f(left, right), *jax.vjp(f, left, right)[1](dy)))

    compiled = both(ours).lower(left, right, dy)
    assert compiled.as_text().count("pathways_product") >= 3
    theirs = both(lambda left, right: jnp.einsum(subscripts, left, right))(left, right, dy)
    for one, other in zip(compiled.compile()(left, right, dy), theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_other_types_are_left_to_xla(loaded):
    halves = jnp.ones((8, 8), jnp.bfloat16)
    text = jax.jit(lambda a, b: contract("ab,bc->ac", a, b, None)).lower(halves, halves).as_text()
    assert "pathways_product" not in text


SUMS = """
import hashlib, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from pathways_lm.kernels.mkl import library, products
from pathways_lm.kernels.mkl.attention import attend

# As many threads as devices, and one at least for each core.
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
library.load(Path(sys.argv[1]))
assert library._loaded
random = np.random.default_rng(0)
draw = lambda *shape: random.standard_normal(shape).astype(np.float32)

def results(left, right, kernels, q, k, v, mask):
    y, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, 0.3), q, k, v)
    sizes = jnp.array([100, 0, 300, 200])
    made = products.product(left, right, False, False), products.product(left, left, True, False)
    ragged = products.ragged(left, kernels, sizes), products.ragged_gradient(left, left, sizes)
    return *made, *ragged, y, *back(jnp.ones_like(y))

run = jax.jit(results)
mask = np.tril(np.ones((1, 90, 90), bool))
for rows in (2, 8):
    heads = draw(rows, 90, 6, 16), draw(rows, 90, 1, 16), draw(rows, 90, 1, 16)
    drawn = draw(700, 512), draw(512, 384), draw(4, 512, 64), *heads
    made = [hashlib.sha256(b"".join(np.asarray(each).tobytes() for each in run(*drawn, mask))) for _ in range(20)]
    print(rows, {each.hexdigest() for each in made})
"""


def test_same_bits_however_threads_share_the_work(folder, loaded):
    def told(devices: int) -> str:
        command = [sys.executable, "-c", SUMS, str(folder), str(devices)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = told(1)
    assert few.count(",") == 0 and len(few.splitlines()) == 2
    assert told(12) == few


# --- rows sorted by expert


def by_loop(rows: np.ndarray, kernels: np.ndarray, sizes: list[int]) -> np.ndarray:
    y, first = np.zeros((len(rows), kernels.shape[2])), 0
    for kernel, size in zip(kernels, sizes, strict=True):
        y[first : first + size] = rows[first : first + size].astype(np.float64) @ kernel
        first += size
    return y


SIZES = [[3, 0, 40, 21], [0, 0, 0, 0], [64, 0, 0, 0], [1, 1, 1, 1], [16, 16, 16, 16]]


@pytest.mark.parametrize("sizes", SIZES)
def test_ragged_products(loaded, sizes):
    rows, kernels, dy = draw(64, 24), draw(4, 24, 18), draw(64, 18)

    def both(rows, kernels, dy):
        y, back = jax.vjp(lambda rows, kernels: ragged_product(rows, kernels, jnp.array(sizes)), rows, kernels)
        return y, *back(dy)

    lowered = jax.jit(both).lower(rows, kernels, dy)
    assert "pathways_ragged_gradient" in lowered.as_text()
    y, drows, dkernels = lowered.compile()(rows, kernels, dy)
    np.testing.assert_allclose(y, by_loop(rows, kernels, sizes), atol=1e-4)
    np.testing.assert_allclose(drows, by_loop(dy, np.swapaxes(kernels, 1, 2), sizes), atol=1e-4)
    ends = np.cumsum(sizes)
    for expert, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        part = slice(end - size, end)
        np.testing.assert_allclose(dkernels[expert], rows[part].T.astype(np.float64) @ dy[part], atol=1e-4)


def test_sizes_that_lead_out_of_the_rows_are_not_followed(loaded):
    rows, kernels = draw(10, 4), draw(3, 4, 5)
    y = jax.jit(products.ragged)(rows, kernels, jnp.array([4, -3, 1000]))
    np.testing.assert_allclose(y, by_loop(rows, kernels, [4, 0, 6]), atol=1e-5)


# --- attention


def plainly(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, dy_BTNH=None) -> tuple[np.ndarray, ...]:
    """By its formula in numpy, fp64; with `dy_BTNH`, the gradients of queries, keys and values behind it."""
    (B, S, K, H), repeats = k_BSKH.shape, q_BTNH.shape[2] // k_BSKH.shape[2]
    q, k, v = (np.asarray(each, np.float64) for each in (q_BTNH, k_BSKH, v_BSKH))
    k, v = np.repeat(k, repeats, axis=2), np.repeat(v, repeats, axis=2)
    seen = np.broadcast_to(np.asarray(mask_BTS)[:, None], (B, q.shape[2], q.shape[1], S))
    scores = np.where(seen, scale * np.einsum("btnh,bsnh->bnts", q, k), -np.inf)
    scores = np.where(seen.any(-1, keepdims=True), scores, 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bnts,bsnh->btnh", weights, v)
    if dy_BTNH is None:
        return (y,)
    dweights = np.einsum("btnh,bsnh->bnts", dy_BTNH, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    dscores = scale * np.where(seen, dscores, 0)

    def shared(through_BSNH):
        return through_BSNH.reshape(B, S, K, repeats, H).sum(3)

    dk, dv = np.einsum("bnts,btnh->bsnh", dscores, q), np.einsum("bnts,btnh->bsnh", weights, dy_BTNH)
    return y, np.einsum("bnts,bsnh->btnh", dscores, k), shared(dk), shared(dv)


def causal(B: int, T: int, S: int) -> np.ndarray:
    return np.tril(np.ones((1, T, S), bool), S - T)


def documents(B: int, T: int, S: int) -> np.ndarray:
    of_row = np.sort(random.integers(0, 4, (B, max(T, S))), axis=1)
    return causal(B, T, S) & (of_row[:, :T, None] == of_row[:, None, :S])


def everything(B: int, T: int, S: int) -> np.ndarray:
    return np.ones((1, T, S), bool)


def by_chance(B: int, T: int, S: int) -> np.ndarray:
    """Some queries see nothing."""
    mask = random.random((B, T, S)) < 0.3
    mask[:, :: max(T // 3, 1)] = False
    return mask


@pytest.mark.parametrize("mask", [causal, documents, everything, by_chance])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 150, 150, 6, 1, 16),
        (2, 150, 150, 6, 2, 16),
        (1, 33, 33, 4, 4, 10),
        (2, 20, 200, 4, 2, 8),
        (3, 1, 5, 2, 1, 4),
        # Sequences enough for heads to be taken together.
        (40, 70, 70, 3, 1, 8),
        (40, 5, 70, 3, 1, 8),
    ],
    ids=str,
)
def test_attention(loaded, mask, shape):
    B, T, S, N, K, H = shape
    q, k, v, dy = draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, H), draw(B, T, N, H)
    seen, scale = mask(B, T, S), H**-0.5

    def ours(q, k, v, dy):
        y, back = jax.vjp(lambda q, k, v: attend(q, k, v, seen, scale), q, k, v)
        return y, *back(dy)

    for one, other in zip(jax.jit(ours)(q, k, v, dy), plainly(q, k, v, seen, scale, dy), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_attention_of_any_mask(folder, B, T, S, K, seed):
    if "no MKL" in library.load(folder):
        pytest.skip("no MKL")
    drawn = np.random.default_rng(seed)
    q, k, v = (
        drawn.standard_normal((B, size, heads, 8)).astype(np.float32) for size, heads in ((T, 4), (S, K), (S, K))
    )
    mask = drawn.random((B, T, S)) < drawn.random()
    np.testing.assert_allclose(attend(q, k, v, mask, 0.5), plainly(q, k, v, mask, 0.5)[0], atol=3e-5)


def test_attention_of_no_sequence(loaded):
    assert attend(draw(0, 3, 2, 4), draw(0, 3, 2, 4), draw(0, 3, 2, 4), everything(0, 3, 3), 1.0).shape == (0, 3, 2, 4)


def test_one_row_of_a_mask_for_all_queries(loaded):
    """As where no query looks ahead or into another document."""
    q, k, v = draw(2, 70, 2, 8), draw(2, 70, 2, 8), draw(2, 70, 2, 8)
    mask = random.random((2, 1, 70)) < 0.5
    np.testing.assert_allclose(attend(q, k, v, mask, 1.0), plainly(q, k, v, mask, 1.0)[0], atol=3e-5)


def test_scores_beyond_all_numbers_show(loaded):
    q, k = np.full((1, 3, 1, 2), 3e38, np.float32), np.full((1, 3, 1, 2), 1e3, np.float32)
    assert np.isnan(attend(q, k, draw(1, 3, 1, 2), everything(1, 3, 3), 1.0)).all()


def test_large_scores_do_not_overflow(loaded):
    q, k, v = draw(1, 70, 2, 8) * 1e3, draw(1, 70, 2, 8) * 1e3, draw(1, 70, 2, 8)
    y = attend(q, k, v, causal(1, 70, 70), 1.0)
    np.testing.assert_allclose(y, plainly(q, k, v, causal(1, 70, 70), 1.0)[0], atol=1e-4)


def test_what_is_hardly_seen_takes_no_longer(loaded):
    """exp of what underflows takes MKL over a hundred times as long."""
    q, k, v = draw(8, 256, 4, 8), draw(8, 256, 4, 8), draw(8, 256, 4, 8)
    run = jax.jit(lambda q: attend(q, k, v, everything(8, 256, 256), 1.0))

    def seconds(factor):
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            run(q * factor).block_until_ready()
            taken.append(time.perf_counter() - began)
        return min(taken)

    seconds(1)
    assert seconds(1000) < 10 * seconds(1)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_a_number_shows(loaded, where):
    """The guard must see it in the loss."""
    arrays = [draw(1, 9, 2, 4), draw(1, 9, 2, 4), draw(1, 9, 2, 4)]
    arrays[where][0, 3, 1, 2] = np.nan
    y = np.asarray(attend(*arrays, causal(1, 9, 9), 0.5))
    assert np.isnan(y[0, 3, 1]).any()
    # A value that is not a number is one times a weight of zero, too.
    assert where == 2 or np.isfinite(y[0, :3]).all()


@pytest.mark.parametrize("devices", [1, 2])
def test_plain_attention_takes_it_on_one_device(loaded, devices):
    rules = make_rules("palm_2d", make_mesh(MeshConfig(tensor=devices), jax.devices()[:devices]))
    q, k, v = draw(2, 12, 4, 8), draw(2, 12, 2, 8), draw(2, 12, 2, 8)
    mask = jnp.asarray(causal(2, 12, 12))
    placed = [jax.device_put(each, rules("batch", "length", "heads", None)) for each in (q, k, v)]

    def attended(q, k, v):
        return attention(q, (None, k), (None, v), mask, None, rules, True)

    lowered = jax.jit(attended).lower(*placed)
    assert ("pathways_attend" in lowered.as_text()) == (devices == 1)
    np.testing.assert_allclose(lowered.compile()(*placed), plainly(q, k, v, mask, 8**-0.5)[0], atol=1e-5)


# --- where there is none


def test_without_it_xla_multiplies(folder, monkeypatch):
    def told() -> str:
        said = library.load(folder)
        assert not library.multiplies(jnp.ones(1))
        return said

    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "arm64")
        assert told() == "XLA's own (no MKL: it is used on Linux on x86-64)"
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self: "vendor_id : AuthenticAMD\nflags : avx512f avx512bw")
        assert "none of Intel's processors" in told()
    monkeypatch.setattr(library, "_check_processor", lambda: None)
    with monkeypatch.context() as patch:

        def missing(name):
            raise PackageNotFoundError(name)

        patch.setattr(library, "distribution", missing)
        assert told() == "XLA's own (no MKL: pip install mkl)"
    monkeypatch.setattr(library, "_library", lambda: Path("libmkl_rt.so"))
    monkeypatch.setattr(library, "_registered", [])
    empty = folder / "empty"
    with monkeypatch.context() as patch:
        patch.setattr(library.shutil, "which", lambda name: None)
        assert "no C++ compiler" in library.load(empty)
    monkeypatch.setattr(library.shutil, "which", lambda name: "c++" if name == "c++" else None)
    failed = subprocess.CompletedProcess([], 1, "", "a\nproducts.cc:1: error: no such thing\nb")
    monkeypatch.setattr(library.subprocess, "run", lambda *a, **k: failed)
    assert library.load(empty).endswith("ended with 1: products.cc:1: error: no such thing)")
    assert list(empty.iterdir()) == []
    in_the_way = folder / "a file"
    in_the_way.write_text("")
    said = library.load(in_the_way / "compiled")
    assert "no MKL" in said and "a file" in said
