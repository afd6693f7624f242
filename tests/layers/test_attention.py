"""The attention layer with a cache, one token at a time, against all positions at once; and what it keeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pathways_lm.config import MeshConfig, TrainConfig
from pathways_lm.layers.attention import Attention, Sight
from pathways_lm.layers.mask import Places, visible
from pathways_lm.layers.position import rotary_angles
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.sharding import make_rules
from pathways_lm.train.step import gradient_sums

L = 5


def test_one_token_at_a_time(tiny):
    """tests/models compares the whole with numpy; here the cached keys, already turned, must serve later queries."""
    config = tiny()
    layer = Attention(config, nnx.Rngs(0), make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    h = jnp.asarray(np.random.default_rng(0).normal(size=(2, L, config.embed_dim)), jnp.float32)

    @jax.jit
    def attend(h, positions, key_positions, cached):
        angles = rotary_angles(positions, config.head_dim, config.rope_base)
        sight = Sight(visible(Places(positions), Places(key_positions), causal=True), angles)
        seen = layer(h, sight, cached=cached)
        return seen.y_BLD, seen.fresh

    everywhere = jnp.arange(L)[None]
    whole, (keys, values) = attend(h, everywhere, everywhere, None)
    assert keys.shape == values.shape == (2, L, 1, config.head_dim)
    # An unused slot holds a number that would show.
    cache = [np.full((2, 1, L, config.head_dim), 50.0, np.float32) for _ in range(2)]
    filled = np.full((1, L), -1)
    for t in range(L):
        at = np.array([[t]])
        out, fresh = attend(h[:, t : t + 1], at, np.concatenate([filled, at], 1), tuple(cache))
        np.testing.assert_allclose(out[:, 0], whole[:, t], atol=2e-6 * np.abs(whole).max())
        np.testing.assert_allclose(fresh[0][:, 0], keys[:, t], atol=1e-5)
        for slots, new in zip(cache, fresh, strict=True):
            slots[:, :, t] = new[:, 0]
        filled[0, t] = t


@pytest.mark.parametrize("preset", ["fsdp", "tensor_parallel"])
def test_selective_recomputing_keeps_no_scores(make, preset):
    """Korthikanti (arXiv:2205.05198, section 5), also where parameters are gathered again: of 3 layers' softmax steps
    over 8 x 256 x 256 pairs and a device's heads none is kept, only those of the layer at work are there."""
    rows, length = 8, 256

    def needed(remat):
        model = make(preset, 4 if preset == "fsdp" else 1, 2, remat=remat)
        tokens = jax.ShapeDtypeStruct((rows, length), np.int32, sharding=model.rules("batch", None))
        gradients = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1)))
        compiled = gradients.lower(model.abstract, Batch(tokens, tokens), None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    devices = 8 if preset == "fsdp" else 2
    scores = 4 * rows * 8 * length**2 / devices
    assert needed("none") - needed("attention") > 3 * scores
