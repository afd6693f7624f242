"""What only a GPU shows: python -m benchmarks.gpu train|experts|fp8|decode

train     MFU and peak memory of a PaLM-like 1.3B and of four layers of the 8B shape in bf16, lengths 2,048 and 8,192,
          beside the same model in PyTorch with torch.compile and its own fused attention
experts   MFU with 64 experts, top-1 (Switch) and top-2 (GLaM), beside a dense model
fp8       a step with `model.matmuls=fp8` beside bf16
decode    tokens a second of PaLM 8B with 1 row, of 1.3B with 1, 32 and 256, beside what reading parameters and cache
          takes at the memory's rate

MFU is PaLM's (appendix B). `--small` goes the same ways on a CPU, with sizes that say nothing. Results are written to
benchmarks/results/gpu_WHAT.json.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# PyTorch shares the memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.side_by_side import OURS, THEIRS, Steps, alternate, draw_tokens, our_step, peers, torch_step, write
from benchmarks.torch_decoder import Decoder, load
from pathways_lm.config import MeshConfig, ModelConfig, MoEConfig
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, cast
from pathways_lm.sharding import make_rules
from pathways_lm.train.flops import flops_per_token, peak_flops

# Bytes a second, from the makers' data sheets.
BANDWIDTH = {"NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12}
TOKENS = 16_384
# GLaM's batches have 16,000 tokens for each expert (arXiv:2112.06905, section 5); this is 2,000 for each.
EXPERTS_TOKENS = 131_072
TOGETHER = 5
"""Training steps in a row, of which only the last is waited for."""
# The smaller one first: its memory is told from the other's.
SHAPES: dict[str, dict[str, int]] = {
    "8B, 4 layers": {"num_layers": 4, "embed_dim": 4096, "num_heads": 16, "head_dim": 256, "mlp_dim": 16_384},
    "1.3B": {"num_layers": 22, "embed_dim": 2048, "num_heads": 16, "head_dim": 128, "mlp_dim": 8192},
}
EXPERTS = {"num_layers": 8, "embed_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 4096}
SMALL = {"num_layers": 2, "embed_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 128}


Rows = Iterator[dict[str, Any]]


def build(shape: dict[str, int], small: bool, **changes: Any) -> Model:
    """A model of that shape, or of the small one, on one device."""
    sizes = SMALL if small else shape
    known = {"vocab_size": 512 if small else 32_768, "unroll": sizes["num_layers"]}
    config = ModelConfig(**(sizes | known | changes))
    return Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))


def tokens_of(model: Model, length: int, small: bool, tokens: int = TOKENS) -> np.ndarray:
    """A batch of rows of a length."""
    return draw_tokens(model.config, (2, 128) if small else (tokens // length, length))


def mfu(model: Model, tokens_BL: np.ndarray, seconds: float) -> float | None:
    """Of this device; None where its peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    flops = flops_per_token(model, Batch(tokens_BL, tokens_BL)) * tokens_BL.size
    return flops / seconds / peak if peak else None


def share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def put_down(params: Any, folder: Path) -> Any:
    """Parameters as files, and their paths in their places: for another process, faster than through a pipe."""
    leaves, tree = jax.tree.flatten(jax.device_get(params))
    paths = [folder / f"{number}.npy" for number in range(len(leaves))]
    for path, leaf in zip(paths, leaves, strict=True):
        np.save(path, leaf)
    return jax.tree.unflatten(tree, paths)


def compiled_torch(config: ModelConfig, paths: dict, tokens_BL: np.ndarray) -> Steps:
    """PyTorch's steps on its GPU, if it has one. The model is compiled here already, and not by the first step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Decoder(config)
    load(model, jax.tree.map(partial(np.load, mmap_mode="r"), paths))
    model = model.to(device)
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "aot_eager")
    with torch.autocast(device, dtype=torch.bfloat16):
        compiled(torch.tensor(tokens_BL, dtype=torch.long, device=device)).float().mean().backward()
    model.zero_grad()
    return torch_step(compiled, "bf16", tokens_BL, device=device)


def train(small: bool, repeats: int) -> Rows:
    for name, shape in SHAPES.items():
        for length in (2048, 8192):
            model = build(shape, small)
            tokens_BL = tokens_of(model, length, small)
            # Both compile at the same time.
            with ThreadPoolExecutor(1) as pool, TemporaryDirectory() as folder:
                paths = put_down(model.initialise(0), Path(folder))
                making = pool.submit(our_step, model, "bf16", tokens_BL)
                with peers(compiled_torch, model.config, paths, tokens_BL, kinds={THEIRS: {}}) as theirs:
                    ours, _, compiled = making.result()
                    figures = alternate({OURS: ours, **theirs}, "bf16", repeats, TOGETHER)
            analysis = compiled.memory_analysis()
            planned = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
            measured = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
            shares = {side: mfu(model, tokens_BL, each) for side, each in figures["median_seconds"].items()}
            memory = {"planned_bytes": planned, "peak_bytes": measured}
            told = ", ".join(f"{side} {share(each)}" for side, each in shares.items())
            peak = "unknown" if measured is None else f"{measured / 2**30:.1f} GiB"
            print(f"{name}, length {length}: MFU {told}; {figures['ratio']:.2f} times PyTorch", flush=True)
            print(f"  memory {planned / 2**30:.1f} GiB by the compiler, {peak} at most since the start", flush=True)
            yield {"name": name, "length": length, **figures, "mfu": shares, **memory}
            del ours, making, compiled


def experts(small: bool, repeats: int) -> Rows:
    dense = None
    for name, top_k in (("dense", 0), ("top-1", 1), ("top-2", 2)):
        moe = MoEConfig()
        if top_k:
            # Places for every choice and a quarter more.
            places = 1.25 * top_k
            moe = MoEConfig(num_experts=64, top_k=top_k, every=2, dispatch="all_to_all", capacity_factor=places)
        model = build(EXPERTS, small, moe=moe)
        tokens_BL = tokens_of(model, 2048, small, EXPERTS_TOKENS)
        seconds = of_a_step(model, tokens_BL, repeats)
        used = mfu(model, tokens_BL, seconds)
        dense = dense or used
        beside = f", {used / dense:.2f} of dense" if used and dense else ""
        print(f"{name}: {seconds * 1e3:.1f} ms, MFU {share(used)}{beside}", flush=True)
        yield {"name": name, "seconds": seconds, "mfu": used}


def fp8(small: bool, repeats: int) -> Rows:
    for name, shape in SHAPES.items():
        seconds = {}
        for matmuls in ("", "fp8"):
            model = build(shape, small, matmuls=matmuls)
            seconds[matmuls or "bf16"] = of_a_step(model, tokens_of(model, 2048, small), repeats)
        ratio = seconds["bf16"] / seconds["fp8"]
        print(f"{name}: fp8 {ratio:.2f} times bf16", flush=True)
        yield {"name": name, "seconds": seconds, "ratio": ratio}


def decode(small: bool, repeats: int) -> Rows:
    """Of prompts of 128 tokens, 128 steps: what all take beyond one."""
    rate = next((each for kind, each in BANDWIDTH.items() if jax.devices()[0].device_kind.startswith(kind)), None)
    for name, shape, vocab_size, counts in (
        ("PaLM 8B", SHAPES["8B, 4 layers"] | {"num_layers": 32}, 256_000, (1,)),
        ("1.3B", SHAPES["1.3B"], 32_768, (1, 32, 256)),
    ):
        model = build(shape, small, **({} if small else {"vocab_size": vocab_size}))
        model = Model(model.config, model.rules, jnp.dtype(jnp.bfloat16))
        params = cast(model.initialise(0), model.dtype)
        config = model.config
        for count in counts:
            form = Form(config.vocab_size, end=-1, begin=None, never=())
            generator = Generator(model, form, 256 + 1, rows=count, cache_dtype=jnp.bfloat16)
            prompts = np.random.default_rng(0).integers(1, config.vocab_size, (count, 128)).tolist()

            def write_on(steps: int, generator: Any = generator, prompts: Any = prompts, params: Any = params) -> None:
                generator.write(params, prompts, Sampler(temperature=0), steps, jax.random.key(0))

            step = (median(partial(write_on, 129), repeats) - median(partial(write_on, 1), repeats)) / 128
            cache = 2 * config.num_layers * count * 192 * config.num_kv_heads * config.head_dim * 2
            read = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + cache
            bound = read / rate / step if rate else None
            print(f"{name}, {count} rows: {count / step:,.0f} tokens/s, {share(bound)} of the bound", flush=True)
            yield {"name": name, "rows": count, "seconds": step, "bytes": read, "of_bound": bound}
            del generator


def of_a_step(model: Model, tokens_BL: np.ndarray, repeats: int) -> float:
    """Median seconds of this project's training step."""
    steps = our_step(model, "bf16", tokens_BL)[0]
    return median(lambda: steps(TOGETHER), repeats) / TOGETHER


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
    out = arguments.out or Path(f"benchmarks/results/gpu_{arguments.what}.json")
    rows: list[dict[str, Any]] = []
    for row in ways[arguments.what](arguments.small, arguments.repeats):
        rows.append(row)
        write(out, {"device": device, "rows": rows})


if __name__ == "__main__":
    main()
