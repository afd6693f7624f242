"""Arithmetic per token against PaLM's table (appendix B), and the peaks it is compared with."""

import jax
import jax.numpy as jnp
import pytest

from pathways_lm.config import MeshConfig
from pathways_lm.mesh import abstract_mesh
from pathways_lm.models import presets
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.flops import flops_per_token, peak_flops


def on_no_device(config):
    return Model(config, make_rules("palm_2d", abstract_mesh(MeshConfig(data=1))))


def tokens(length):
    return jax.ShapeDtypeStruct((8, length), jnp.int32)


def per_token(layers, d, heads):
    config = presets.palm(num_layers=layers, embed_dim=d, num_heads=heads, mlp_dim=4 * d)
    return flops_per_token(on_no_device(config), Batch(tokens(2048), tokens(2048)))


def test_flops_of_an_encoder_decoder():
    """T5 small (arXiv:1910.10683): the products of both towers written out, 3 x 2 operations a weight and token.

    The decoder's keys and values of the encoder's tokens are counted with the decoder's tokens, as PaLM's formula has
    no place for them: less than what they are.
    """
    d, f, layers, width, vocab, read, written = 512, 2048, 6, 512, 32128, 512, 114
    attention = 4 * d * width
    encoder = layers * (attention + 2 * d * f + 2 * d) + 32 * 8 + d
    decoder = layers * (2 * attention + 2 * d * f + 3 * d) + 32 * 8 + d + vocab * d
    scores = 12 * layers * width
    total = read * (6 * encoder + scores * read) + written * (6 * decoder + scores * (read + written))
    config = presets.t5(8, num_layers=layers, embed_dim=d, mlp_dim=f)
    batch = Batch(tokens(written), tokens(written), encoder_tokens=tokens(read))
    assert flops_per_token(on_no_device(config), batch) == pytest.approx(total / (read + written), rel=1e-9)


@pytest.mark.parametrize(
    ("layers", "d", "heads", "printed"),
    [(32, 4096, 16, "0.0550"), (64, 8192, 32, "0.388"), (118, 18432, 48, "3.28")],
)
def test_flops_per_token(layers, d, heads, printed):
    teraflops = per_token(layers, d, heads) / 1e12
    assert f"{teraflops:.{len(printed) - 2}f}" == printed


def test_palm_540b_utilisation():
    """238.3K tokens a second on 6,144 TPU v4 are 46.2% (table 3)."""
    used = 238.3e3 * per_token(118, 18432, 48)
    assert f"{used / (6144 * peak_flops('TPU v4')):.3f}" == "0.462"


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("cpu", None),
    ],
)
def test_peak(kind, peak):
    assert peak_flops(kind) == peak
