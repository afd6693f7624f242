"""Which attention a step uses: by platform, shapes and what is asked of it.

plain     scores of all queries by all keys lie in memory, and for the backward pass stay there; those of a tile
          where MKL attends (`kernels.mkl`), which is not another choice as it takes the same masks
blocked   `layers.ring`: a running softmax takes keys in by tiles; forward and backward never hold length x length
splash    the same as one kernel of a TPU (`kernels.splash`)
cudnn     the same as one kernel of an NVIDIA GPU (`kernels.cudnn`)
triton    another one, which takes packed documents (`kernels.triton`)
"""

import math
from typing import NamedTuple

from pathways_lm.config import ModelConfig
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import of_devices
from pathways_lm.mesh import platform as platform_of
from pathways_lm.sharding import Rules

# Scores of one layer and device, in fp32, above which they are no longer held: more than caches take, so that from here
# on tiles are also faster (benchmarks/long_attention.py). Below, one product of matrices is as fast, and keeps little.
SCORES_BYTES = 2**26
LANES = 128
"""Lengths that kernels take, and the head sizes of TPUs, are multiples of this."""
CUDNN_HEAD_DIM = {"9.0": 256}
"""The largest that cuDNN takes through the backward pass, by a card's compute capability; 9.0 is Hopper."""
CUDNN_HEAD_DIM_ELSEWHERE = 128


class Asked(NamedTuple):
    """What a layer's attention must do, besides what the config says of all."""

    rows: int
    """Sequences of the microbatch, of all devices together."""
    queries: int
    keys: int
    """Lengths of whole sequences."""
    causal: bool = True
    packed: bool = False
    """Whether documents of a row do not see one another."""
    prefix: bool = False
    relative: bool = False
    """Whether a table by relative position is added to the scores."""
    drops: bool = False
    """Whether weights are dropped, as in training with dropout."""
    half: bool = True
    """Whether queries, keys and values are in bf16 or fp16."""
    gapless: bool = True
    """Whether every place of a row is a token, or padding behind them in a document of its own."""


class Choice(NamedTuple):
    """An attention, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def choose(
    config: ModelConfig, rules: Rules, asked: Asked, strict: bool = False, platform: str | None = None
) -> Choice:
    """The attention that serves.

    Args:
      strict: raise ConfigError where the one that `model.attention` names cannot serve, and do not take another one.
      platform: other than that of the rules' devices.
    """
    platform, wanted = platform or platform_of(rules.mesh), config.attention
    if rules.ring:
        if strict and wanted not in ("auto", "blocked"):
            raise ConfigError(
                f"model.attention={wanted!r} cannot serve: under mesh.context_attention='ring' keys and values go "
                "round, which is 'blocked'"
            )
        return Choice("blocked", "keys and values go round the devices of mesh.context")
    refused = {
        "plain": "",
        "blocked": _not_blocked(rules, asked),
        "splash": _not_splash(config, rules, platform, asked),
        "cudnn": _not_cudnn(config, rules, platform, asked),
        "triton": _not_triton(config, rules, platform, asked),
    }
    if wanted != "auto":
        if not refused[wanted]:
            return Choice(wanted, f"model.attention={wanted!r}")
        if strict:
            raise ConfigError(f"model.attention={wanted!r} cannot serve: {refused[wanted]}; 'auto' takes what can")
    return _automatic(rules, platform, asked, refused, config.num_heads)


def _automatic(rules: Rules, platform: str, asked: Asked, refused: dict[str, str], num_heads: int) -> Choice:
    kernels = {"tpu": ("splash",), "gpu": ("cudnn", "triton")}.get(platform, ())
    without = ""
    for kernel in kernels:
        if not refused[kernel]:
            return Choice(kernel, f"{without}the kernel of {platform.upper()}s serves")
        without += f"no {kernel}: {refused[kernel]}; "
    held = scores_bytes(rules, asked, num_heads)
    size = f"scores of a layer are {_size(held)} a device"
    if held <= SCORES_BYTES:
        return Choice("plain", f"{without}{size}, held up to {_size(SCORES_BYTES)}")
    if refused["blocked"]:
        return Choice("plain", f"{without}{size}, but not blocked: {refused['blocked']}")
    return Choice("blocked", f"{without}{size}, not held above {_size(SCORES_BYTES)}")


def scores_bytes(rules: Rules, asked: Asked, num_heads: int) -> float:
    """What the scores of one layer take on a device, in fp32."""
    pairs = asked.rows * num_heads * asked.queries * asked.keys
    return 4 * pairs / (rules.parts("batch") * rules.parts("heads") * rules.parts("length"))


# --- why each cannot serve; empty where it can


def _not_blocked(rules: Rules, asked: Asked) -> str:
    if rules.parts("length") > 1:
        return "a sequence lies on several devices, with mesh.context_attention='gather'"
    if asked.drops:
        return "model.dropout drops weights, which no tile keeps"
    return ""


def _not_splash(config: ModelConfig, rules: Rules, platform: str, asked: Asked) -> str:
    if platform != "tpu":
        return f"it is a kernel of TPUs, and these devices are {platform}"
    if reason := _not_a_kernel(rules, asked):
        return reason
    if asked.half and of_devices(rules.mesh, "device_kind") in ("TPU v2", "TPU v3"):
        return f"kernels of a {of_devices(rules.mesh, 'device_kind')} do not multiply bf16"
    if config.head_dim % LANES and config.head_dim != 64:
        return f"model.head_dim={config.head_dim} is neither 64 nor a multiple of {LANES}"
    for length in (asked.queries, asked.keys):
        if length % LANES:
            return f"a length of {length} is not a multiple of {LANES}"
    return ""


def _not_cudnn(config: ModelConfig, rules: Rules, platform: str, asked: Asked) -> str:
    if platform != "gpu":
        return f"it is a kernel of NVIDIA GPUs, and these devices are {platform}"
    if reason := _not_a_kernel(rules, asked):
        return reason
    if not asked.half:
        return "it multiplies bf16 and fp16 only, and train.precision is fp32"
    if asked.packed:
        return "documents packed into a row would need a mask of length x length"
    largest = CUDNN_HEAD_DIM.get(of_devices(rules.mesh, "compute_capability"), CUDNN_HEAD_DIM_ELSEWHERE)
    if config.head_dim % 8 or config.head_dim > largest:
        return f"model.head_dim={config.head_dim} is not a multiple of 8 up to {largest}"
    return ""


def _not_triton(config: ModelConfig, rules: Rules, platform: str, asked: Asked) -> str:
    if platform != "gpu":
        return f"it is a kernel of NVIDIA GPUs, and these devices are {platform}"
    if reason := _not_a_kernel(rules, asked):
        return reason
    if config.window and asked.causal:
        return "its masks have no model.window"
    if config.head_dim > 256 or config.head_dim & (config.head_dim - 1) or config.head_dim < 16:
        return f"model.head_dim={config.head_dim} is no power of two from 16 to 256"
    if asked.queries != asked.keys:
        return "an encoder's output has documents of its own"
    if asked.queries % LANES:
        return f"a length of {asked.queries} is not a multiple of {LANES}"
    return ""


def _not_a_kernel(rules: Rules, asked: Asked) -> str:
    """What neither platform's kernel does."""
    if reason := _not_blocked(rules, asked):
        return reason
    if asked.relative:
        return "relative positions add a bias of length x length"
    if asked.prefix:
        return "prefixes are data, and its masks are fixed"
    if not asked.gapless:
        return "empty slots are data, and its masks are fixed"
    return ""


def _size(num_bytes: float) -> str:
    power = min(3, int(math.log2(max(num_bytes, 1)) // 10))
    return f"{num_bytes / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
