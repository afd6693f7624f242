"""Arithmetic per token against PaLM's table (appendix B), and the peaks it is compared with."""

import pytest

from pathways_lm.config import ModelConfig
from pathways_lm.train.flops import flops_per_token, peak_flops


@pytest.mark.parametrize(
    ("layers", "d", "heads", "billions", "printed"),
    [(32, 4096, 16, 8.632, "0.0550"), (64, 8192, 32, 62.496, "0.388"), (118, 18432, 48, 540.356, "3.28")],
)
def test_flops_per_token(layers, d, heads, billions, printed):
    sizes = {"num_layers": layers, "embed_dim": d, "num_heads": heads, "head_dim": 256, "mlp_dim": 4 * d}
    config = ModelConfig(**sizes, vocab_size=256_000)
    teraflops = flops_per_token(config, round(billions * 1e9), 2048) / 1e12
    assert f"{teraflops:.{len(printed) - 2}f}" == printed


def test_palm_540b_utilisation():
    """238.3K tokens a second on 6,144 TPU v4 are 46.2% (table 3)."""
    config = ModelConfig(num_layers=118, embed_dim=18432, num_heads=48, head_dim=256, mlp_dim=73728, vocab_size=256_000)
    used = 238.3e3 * flops_per_token(config, 540_356_474_880, 2048)
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
