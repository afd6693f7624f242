"""Layers to stages and back."""

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given

from pathways_lm.config import MeshConfig
from pathways_lm.mesh import abstract_mesh, make_mesh
from pathways_lm.pipeline.deal import Deal
from pathways_lm.sharding import make_rules


def deal(num_layers, stages, chunks):
    mesh = abstract_mesh(MeshConfig(data=1, stage=stages), stages)
    return Deal(num_layers, make_rules("palm_2d", mesh, chunks=chunks))


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 20))
def test_layers_follow_one_another(stages, chunks, more):
    """Through the stages for each chunk in turn, and no stage has two more than another of its chunks."""
    num_layers = stages * chunks + more
    layers = deal(num_layers, stages, chunks).layers
    order = [layer for c in range(chunks) for s in range(stages) for layer in layers[s, c] if layer >= 0]
    assert order == list(range(num_layers))
    counts = (layers >= 0).sum(axis=-1)
    assert counts.max() - counts.min() <= 1


def test_ends_have_less():
    """Pathways' example: 62 layers on 16 stages, one less on the first and last (arXiv:2203.12533, section 5.3)."""
    counts = (deal(62, 16, 1).layers >= 0).sum(axis=(1, 2))
    assert counts.tolist() == [3] + [4] * 14 + [3]


@pytest.mark.parametrize(("num_layers", "chunks"), [(8, 1), (6, 1), (8, 2), (9, 2)])
def test_there_and_back(num_layers, chunks):
    mesh = make_mesh(MeshConfig(data=2, stage=4))
    rules = make_rules("palm_2d", mesh, chunks=chunks)
    dealt = Deal(num_layers, rules)
    variable = nnx.Param(0, dims=("embed", "mlp"), std=1.0, tokens=("batch", "length"))
    values = np.random.default_rng(0).normal(size=(num_layers, 16, 3)).astype(np.float32)
    stored = jax.device_put(values, rules.stacked(num_layers, "embed", "mlp"))
    out = jax.jit(lambda stack: dealt.out(stack, variable))(stored)
    for place in np.ndindex(*dealt.layers.shape):
        if dealt.layers[place] >= 0:
            np.testing.assert_array_equal(np.asarray(out)[place], values[dealt.layers[place]])
    # A stage's layers are on its devices only, whole along the model dimension: ZeRO's third stage apart.
    assert out.sharding.spec[0] == "stage"
    back = jax.jit(lambda stack: dealt.back(dealt.out(stack, variable), variable))(stored)
    np.testing.assert_array_equal(back, values)
    assert back.sharding.is_equivalent_to(stored.sharding, 3)
