"""The shared table: rows in, scaled products out."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from pathways_lm.config import MeshConfig
from pathways_lm.layers.embed import Embedding, lookup
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules


@pytest.mark.parametrize(
    ("preset", "data", "tensor"), [("palm_2d", 1, 1), ("palm_2d", 2, 4), ("fsdp", 4, 2), ("tensor_parallel", 1, 8)]
)
def test_rows_and_scaled_products(tiny, preset, data, tensor):
    """PaLM section 5.1: input embeddings are not scaled, logits are, by 1 / sqrt(D)."""
    rules = make_rules(preset, make_mesh(MeshConfig(data=data, tensor=tensor)))
    random = np.random.default_rng(0)
    table, x = random.normal(size=(264, 16)).astype(np.float32), random.normal(size=(8, 5, 16)).astype(np.float32)
    tokens = random.integers(0, 264, (8, 5), dtype=np.int32)
    tokens[0, :2] = 0, 263

    @jax.jit
    def both(seed, table, tokens, x):
        layer = Embedding(tiny(embed_dim=16), nnx.Rngs(params=jax.random.key(seed)), rules)
        layer.table[...] = table
        return layer.encode(tokens), layer.decode(x).logits()

    dims = ((), ("vocab", "embed"), ("batch", "length"), ("batch", "length", "residual"))
    placed = jax.device_put((np.uint32(0), table, tokens, x), tuple(rules(*names) for names in dims))
    rows, logits = both(*placed)
    np.testing.assert_array_equal(rows, table[tokens])
    expected = x.astype(np.float64) @ table.T / 4.0
    np.testing.assert_allclose(logits, expected, atol=1e-6 * np.abs(expected).max())
    assert rows.sharding.spec == rules("batch", "length", "residual").spec
    assert logits.sharding.spec == rules("batch", "length", "vocab").spec


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (2, 4)])
def test_looked_up_rows_and_the_gradient_of_the_table(data, tensor, dtype):
    """Rows come as they are, in every bit; a row's gradient is the sum over its tokens."""
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=data, tensor=tensor)))
    random = np.random.default_rng(0)
    table = random.normal(size=(24, 16)).astype(dtype)
    tokens = random.integers(0, 24, (8, 5), dtype=np.int32)
    # Of few bits, so that sums of them are exact in any type.
    gradient = random.integers(-2, 3, (8, 5, 16)).astype(dtype)
    out = rules("batch", "length", None)

    @jax.jit
    def both(table, tokens, gradient):
        rows, pull = jax.vjp(lambda table: lookup(table, tokens, out), table)
        return rows, pull(gradient)[0]

    placed = rules("vocab", None), rules("batch", "length"), out
    rows, summed = both(*(map(jax.device_put, (table, tokens, gradient), placed)))
    np.testing.assert_array_equal(np.asarray(rows).view(np.uint8), table[tokens].view(np.uint8))
    expected = np.zeros((24, 16))
    np.add.at(expected, tokens, gradient.astype(float))
    np.testing.assert_array_equal(np.asarray(summed).astype(float), expected)
    assert rows.dtype == summed.dtype == table.dtype
