"""Arithmetic of a training step, and what devices can do."""

from pathways_lm.config import ModelConfig

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


def flops_per_token(model: ModelConfig, num_params: int, sequence_length: int) -> float:
    """6 N + 12 L H Q T of PaLM's appendix B: forward and backward, without what is recomputed."""
    attention = 12 * model.num_layers * model.num_heads * model.head_dim * sequence_length
    return 6.0 * num_params + attention
