"""What only a GPU shows: python -m benchmarks.gpu train|experts|fp8|decode

train     MFU and peak memory of a PaLM-like 1.3B and of four layers of the 8B shape in bf16, lengths 2,048 and 8,192,
          beside the same model in PyTorch with torch.compile and its own fused attention
experts   MFU with 64 experts, top-1 (Switch) and top-2 (GLaM), beside a dense model
fp8       a step with `model.matmuls=fp8` beside bf16
decode    tokens a second of 1, 32 and 256 rows, beside what reading parameters and cache takes at the memory's rate

MFU is PaLM's (appendix B). `--small` goes the same ways on a CPU, with sizes that say nothing. Results are written to
benchmarks/results/gpu_WHAT.json.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch shares the memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.side_by_side import OURS, THEIRS, StepOnce, alternate, draw_tokens, our_step, peers, torch_step, write
from benchmarks.torch_decoder import Decoder, load
from pathways_lm.config import MeshConfig, ModelConfig, MoEConfig
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator, Written
from pathways_lm.decode.sampling import Sampler
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, cast
from pathways_lm.sharding import make_rules
from pathways_lm.train.flops import flops_per_token, peak_flops

# Bytes a second, from the makers' data sheets.
BANDWIDTH = {"NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12}
TOKENS = 16_384
SHAPES: dict[str, dict[str, int]] = {
    "1.3B": {"num_layers": 22, "embed_dim": 2048, "num_heads": 16, "head_dim": 128, "mlp_dim": 8192},
    "8B, 4 layers": {"num_layers": 4, "embed_dim": 4096, "num_heads": 16, "head_dim": 256, "mlp_dim": 16_384},
}
EXPERTS = {"num_layers": 8, "embed_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 4096}
SMALL = {"num_layers": 2, "embed_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 128}


def build(shape: dict[str, int], small: bool, **changes: Any) -> Model:
    """A model of that shape, or of the small one, on one device."""
    sizes = SMALL if small else shape
    config = ModelConfig(**sizes, vocab_size=512 if small else 32_768, unroll=sizes["num_layers"], **changes)
    return Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))


def tokens_of(model: Model, length: int, small: bool) -> np.ndarray:
    """A batch of rows of a length."""
    return draw_tokens(model.config, (2, 128) if small else (TOKENS // length, length))


def mfu(model: Model, tokens_BL: np.ndarray, seconds: float) -> float | None:
    """Of this device; None where its peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    flops = flops_per_token(model, Batch(tokens_BL, tokens_BL)) * tokens_BL.size
    return flops / seconds / peak if peak else None


def share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def compiled_torch(config: ModelConfig, params: dict, tokens_BL: np.ndarray) -> StepOnce:
    """PyTorch's step on its GPU, if it has one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Decoder(config)
    load(model, params)
    model = model.to(device)
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "aot_eager")
    return torch_step(compiled, "bf16", tokens_BL, device=device)


def train(small: bool, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name, shape in SHAPES.items():
        for length in (2048, 8192):
            model = build(shape, small)
            tokens_BL = tokens_of(model, length, small)
            ours, params, compiled = our_step(model, "bf16", tokens_BL)
            with peers(compiled_torch, model.config, jax.device_get(params), tokens_BL, kinds={THEIRS: {}}) as theirs:
                figures = alternate({OURS: ours, **theirs}, "bf16", repeats)
            memory = compiled.memory_analysis()
            planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            measured = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
            shares = {side: mfu(model, tokens_BL, each) for side, each in figures["median_seconds"].items()}
            rows.append({"name": name, "length": length, **figures, "mfu": shares, "planned_bytes": planned})
            rows[-1]["peak_bytes"] = measured
            told = ", ".join(f"{side} {share(each)}" for side, each in shares.items())
            peak = "unknown" if measured is None else f"{measured / 2**30:.1f} GiB"
            print(f"{name}, length {length}: MFU {told}; {figures['ratio']:.2f} times PyTorch", flush=True)
            print(f"  memory {planned / 2**30:.1f} GiB by the compiler, {peak} at most since the start", flush=True)
            del ours, params, compiled
    return rows


def experts(small: bool, repeats: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    moes = [(f"top-{k} {way}", k, way) for k in (1, 2) for way in ("all_to_all", "einsum", "dropless")]
    for name, top_k, dispatch in [("dense", 0, ""), *moes]:
        moe = MoEConfig(num_experts=64, top_k=top_k, every=2, dispatch=dispatch) if top_k else MoEConfig()
        model = build(EXPERTS, small, moe=moe)
        tokens_BL = tokens_of(model, 2048, small)
        seconds = median(our_step(model, "bf16", tokens_BL)[0], repeats)
        rows.append({"name": name, "seconds": seconds, "mfu": mfu(model, tokens_BL, seconds)})
        first = rows[0]["mfu"]
        beside = f", {rows[-1]['mfu'] / first:.2f} of dense" if first else ""
        print(f"{name}: {seconds * 1e3:.1f} ms, MFU {share(rows[-1]['mfu'])}{beside}", flush=True)
    return rows


def fp8(small: bool, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name, shape in SHAPES.items():
        seconds = {}
        for matmuls in ("", "fp8"):
            model = build(shape, small, matmuls=matmuls)
            seconds[matmuls or "bf16"] = median(our_step(model, "bf16", tokens_of(model, 2048, small))[0], repeats)
        rows.append({"name": name, "seconds": seconds, "ratio": seconds["bf16"] / seconds["fp8"]})
        print(f"{name}: fp8 {rows[-1]['ratio']:.2f} times bf16", flush=True)
    return rows


def decode(small: bool, repeats: int) -> list[dict[str, Any]]:
    """Of prompts of 128 tokens, 128 steps: what all take beyond one."""
    rows = []
    model = build(SHAPES["1.3B"], small)
    model = Model(model.config, model.rules, jnp.dtype(jnp.bfloat16))
    params = cast(model.initialise(0), model.dtype)
    rate = next((each for kind, each in BANDWIDTH.items() if jax.devices()[0].device_kind.startswith(kind)), None)
    config = model.config
    for count in (1, 32, 256):
        form = Form(config.vocab_size, end=-1, begin=None, never=())
        generator = Generator(model, form, 256 + 1, rows=count, cache_dtype=jnp.bfloat16)
        prompts = np.random.default_rng(0).integers(1, config.vocab_size, (count, 128)).tolist()

        def writing(steps: int, generator: Any = generator, prompts: Any = prompts) -> Callable[[], list[Written]]:
            return lambda: generator.write(params, prompts, Sampler(temperature=0), steps, jax.random.key(0))

        step = (median(writing(129), repeats) - median(writing(1), repeats)) / 128
        cache = 2 * config.num_layers * count * 192 * config.num_kv_heads * config.head_dim * 2
        read = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + cache
        rows.append({"rows": count, "seconds": step, "bytes": read, "of_bound": read / rate / step if rate else None})
        print(f"{count} rows: {count / step:,.0f} tokens/s, {share(rows[-1]['of_bound'])} of the bound", flush=True)
    return rows


def median(call: Callable[[], Any], repeats: int) -> float:
    """Seconds, after two calls that do not count."""
    taken = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def main() -> None:
    ways = {each.__name__: each for each in (train, experts, fp8, decode)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=ways)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = jax.devices()[0].device_kind
    rows = ways[arguments.what](arguments.small, arguments.repeats)
    out = arguments.out or Path(f"benchmarks/results/gpu_{arguments.what}.json")
    write(out, {"device": device, "rows": rows})


if __name__ == "__main__":
    main()
