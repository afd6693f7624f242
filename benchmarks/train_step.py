"""A training step of a small decoder beside the same model in plain PyTorch: python -m benchmarks.train_step

Same weights, same tokens, the same AdamW with the same global-norm clip, on the CPU. Steps alternate in one process, so
that whatever else the machine does falls on both; medians and the ratio of medians are printed, and written as JSON.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks.torch_decoder import Decoder, load
from pathways_lm.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step

RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


def ours(model: Model, precision: str, tokens: np.ndarray):
    """A function that does one step and returns its loss, after the device has finished it."""
    config = OptimizerConfig(
        name="adamw",
        learning_rate=RATE,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=DECAY,
        clip_norm=CLIP,
        hold_steps=10**9,
    )
    schedule = make_schedule(config, 1)
    optimizer = make_optimizer(config, schedule, model)
    train = TrainConfig(num_steps=1, precision=precision, z_loss=0.0)
    inputs = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    batch = jax.device_put(Batch(inputs, tokens), model.rules("batch", None))
    compiled = compile_step(make_step(model, optimizer, schedule, train), model, optimizer, batch)
    state = initial_state(model, optimizer, 0)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step, state.params


def theirs(config: ModelConfig, params: dict, precision: str, tokens: np.ndarray):
    """The same in PyTorch."""
    model = Decoder(config)
    load(model, jax.device_get(params))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
    targets = torch.tensor(tokens, dtype=torch.long)
    inputs = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def measure(precision: str, config: ModelConfig, shape: tuple[int, int], repeats: int) -> dict:
    """Alternates steps of both; seconds of each, and their losses side by side."""
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, shape).astype(np.int32)
    step_ours, params = ours(model, precision, tokens)
    step_theirs = theirs(config, params, precision, tokens)
    seconds: dict[str, list[float]] = {"pathways_lm": [], "pytorch": []}
    losses: dict[str, list[float]] = {"pathways_lm": [], "pytorch": []}
    for repeat in range(repeats + 2):
        for name, step in (("pathways_lm", step_ours), ("pytorch", step_theirs)):
            began = time.perf_counter()
            loss = step()
            took = time.perf_counter() - began
            losses[name].append(loss)
            # The first two of each warm up.
            if repeat >= 2:
                seconds[name].append(took)
    # Both must be doing the same thing for their times to be compared.
    tolerance = {"fp32": 1e-4, "bf16": 3e-2}[precision]
    np.testing.assert_allclose(losses["pathways_lm"][:3], losses["pytorch"][:3], rtol=tolerance)
    ratios = sorted(b / a for a, b in zip(seconds["pathways_lm"], seconds["pytorch"], strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "precision": precision,
        "median_seconds": medians,
        "ratio": medians["pytorch"] / medians["pathways_lm"],
        "pairwise_ratio_min_max": [ratios[0], ratios[-1]],
        "parameters": num_params(model),
        "first_losses": {name: values[:3] for name, values in losses.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--unroll", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.json"))
    arguments = parser.parse_args()
    config = ModelConfig(
        num_layers=arguments.layers,
        embed_dim=384,
        num_heads=6,
        head_dim=64,
        mlp_dim=1536,
        vocab_size=8192,
        unroll=arguments.unroll,
    )
    rows = [measure(precision, config, (8, 256), arguments.repeats) for precision in arguments.precision]
    versions = {"python": platform.python_version(), "jax": jax.__version__, "torch": torch.__version__}
    machine = {"cores": torch.get_num_threads(), "processor": _processor()}
    print(f"{rows[0]['parameters']:,} parameters, batch 8 x 256, {machine}, {versions}")
    print(f"{'':6}{'pathways_lm':>14}{'PyTorch eager':>16}{'ratio':>8}   pair by pair")
    for row in rows:
        a, b = row["median_seconds"].values()
        low, high = row["pairwise_ratio_min_max"]
        print(f"{row['precision']:6}{a:13.3f}s{b:15.3f}s{row['ratio']:8.2f}   {low:.2f} to {high:.2f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"versions": versions, "machine": machine, "rows": rows}, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
