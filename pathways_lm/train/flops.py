"""Arithmetic of a training step, and what devices can do."""

from typing import Any

from pathways_lm.config import ModelConfig
from pathways_lm.models.batch import Batch
from pathways_lm.models.inventory import num_active_params
from pathways_lm.models.model import Model

# Dense bf16 matrix rate of one device, FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str, num_devices: int = 1) -> float | None:
    """The peak of so many devices of the longest known name that their kind starts with; None where it is not known."""
    known = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return num_devices * PEAK_FLOPS[max(known, key=len)] if known else None


# Of one device at work, as data sheets and "TPU v4" (arXiv:2304.01433, table 4) tell them.
WATTS = {"TPU v4": 170.0, "NVIDIA A100": 400.0, "NVIDIA H100": 700.0, "NVIDIA H200": 700.0}


def device_watts(device_kind: str, num_devices: int) -> float | None:
    """The power of so many devices; None where it is not known."""
    known = [name for name in WATTS if device_kind.startswith(name)]
    return num_devices * WATTS[max(known, key=len)] if known else None


def read_tokens(batch: Batch) -> list[Any]:
    """The arrays of tokens that a model reads, the encoder's first."""
    return [tokens for tokens in (batch.encoder_tokens, batch.tokens) if tokens is not None]


def flops_per_token(model: Model, batch: Batch) -> float:
    """Forward and backward, without what is recomputed, for each token of `batch` that the model reads.

    6 N + 12 L H Q T of PaLM's appendix B, with the parameters that are active for N. In an encoder-decoder a token is
    multiplied with its own tower, and the decoder's attention looks at the encoder's tokens, too.
    """
    config = model.config
    lengths = [tokens.shape[1] for tokens in read_tokens(batch)]
    total = 0.0
    for tower, length in zip(_towers(config), lengths, strict=True):
        layers = config.num_encoder_layers or config.num_layers if tower == "encoder" else config.num_layers
        seen = sum(lengths) if tower == "decoder" else length
        attention = 12 * layers * config.num_heads * config.head_dim * seen
        total += length * (6.0 * num_active_params(model, _parts(config, tower)) + attention)
    return total / sum(lengths)


def _towers(config: ModelConfig) -> tuple[str, ...]:
    return ("encoder", "decoder") if config.shape == "encoder_decoder" else (config.shape,)


def _parts(config: ModelConfig, tower: str) -> tuple[str, ...]:
    """Where the parameters lie that a token of this tower is multiplied with; empty is everywhere."""
    if config.shape != "encoder_decoder":
        return ()
    return ("encoder/",) if tower == "encoder" else ("decoder/", "embedding/" if config.tied_head else "head/")
