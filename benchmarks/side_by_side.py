"""What comparisons have in common: steps that alternate, their figures, the machine, and the file they go to."""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from pathways_lm.cli.cpu import TUNABLES
from pathways_lm.config import ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step

# A small rate, so that first losses differ by no more than the arithmetic does.
RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
OURS, THEIRS, THEIRS_KEEPING = "pathways_lm", "pytorch", "pytorch keeping its memory"
MEMORY: Mapping[str, dict[str, str]] = {THEIRS: {}, THEIRS_KEEPING: {"GLIBC_TUNABLES": TUNABLES}}
"""As glibc comes, and as `pathways-lm train` begins."""
WARM_UP = 2
CHECKED = 3
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Relative, of the first losses: both sides must be doing the same thing for their times to be compared."""

Steps = Callable[[int], list[float]]
"""Does so many training steps and returns their losses, after the device has finished the last."""


def our_step(model: Model, precision: str, tokens_BL: np.ndarray) -> tuple[Steps, dict, Any]:
    """This project's step with AdamW, the parameters it begins with, and the compiled program."""
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
    inputs_BL = np.pad(tokens_BL, ((0, 0), (1, 0)))[:, :-1]
    batch = jax.device_put(Batch(inputs_BL, tokens_BL), model.rules("batch", None))
    compiled = compile_step(make_step(model, optimizer, schedule, train), model, optimizer, batch)
    state = initial_state(model, optimizer, 0)

    def steps(count: int) -> list[float]:
        nonlocal state
        losses = []
        for _ in range(count):
            state, metrics = compiled(state, batch)
            losses.append(metrics["loss"])
        jax.block_until_ready(state)
        return [float(loss) for loss in losses]

    return steps, state.params, compiled


def torch_step(
    model: torch.nn.Module,
    precision: str,
    tokens_BL: np.ndarray,
    besides: Callable[[], torch.Tensor] | None = None,
    device: str = "cpu",
) -> Steps:
    """The same in PyTorch. `besides` gives what is added to the loss after the model has run; it is not told."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    # On GPUs one kernel for many arrays is the fastest there is.
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True if device == "cuda" else None)
    targets_BL = torch.tensor(tokens_BL, dtype=torch.long, device=device)
    inputs_BL = torch.cat([torch.zeros_like(targets_BL[:, :1]), targets_BL[:, :-1]], dim=1)

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs_BL)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets_BL.flatten())
        (loss if besides is None else loss + besides()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def steps(count: int) -> list[float]:
        return [loss.item() for loss in [step() for _ in range(count)]]

    return steps


def draw_tokens(config: ModelConfig, shape: tuple[int, int]) -> np.ndarray:
    """A batch that never changes; none is padding."""
    return np.random.default_rng(0).integers(1, config.vocab_size, shape).astype(np.int32)


@contextmanager
def peers(
    build: Callable[..., Steps], *arguments: Any, kinds: Mapping[str, dict[str, str]] = MEMORY
) -> Iterator[dict[str, Steps]]:
    """What `build` makes of the arguments, in processes of their own.

    Args:
      kinds: names, and what is in the environment besides; without more, two with both settings of memory.
    """
    context, kept = multiprocessing.get_context("spawn"), os.environ.pop("GLIBC_TUNABLES", None)
    steps, processes = {}, []
    for name, settings in kinds.items():
        here, there = context.Pipe()
        os.environ.update(settings)
        processes.append(context.Process(target=_serve, args=(there, build, arguments), daemon=True))
        processes[-1].start()

        def go(count: int, here: Any = here) -> list[float]:
            here.send(count)
            return here.recv()

        steps[name] = go
    os.environ.pop("GLIBC_TUNABLES", None)
    if kept is not None:
        os.environ["GLIBC_TUNABLES"] = kept
    try:
        yield steps
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(pipe: Any, build: Callable[..., Steps], arguments: tuple[Any, ...]) -> None:
    steps = build(*arguments)
    while True:
        pipe.send(steps(pipe.recv()))


def alternate(steps: Mapping[str, Steps], precision: str, repeats: int, together: int = 1) -> dict[str, Any]:
    """Alternates, ours first; median seconds of a step, the ratio to the faster peer, its spread pair by pair, and
    first losses.

    Args:
      together: steps in a row, of which only the last is waited for, as in training.

    Raises AssertionError where the first losses differ.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + WARM_UP):
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name] += step(together)
            took = (time.perf_counter() - began) / together
            if repeat >= WARM_UP:
                seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    others = [name for name in steps if name != OURS]
    for other in others:
        np.testing.assert_allclose(losses[OURS][:CHECKED], losses[other][:CHECKED], rtol=TOLERANCE[precision])
    faster = min(others, key=medians.__getitem__)
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds[OURS], seconds[faster], strict=True))
    return {
        "precision": precision,
        "median_seconds": medians,
        "ratio": medians[faster] / medians[OURS],
        "pairwise_ratio_min_max": [ratios[0], ratios[-1]],
        "repeats": repeats,
        "first_losses": {name: values[:CHECKED] for name, values in losses.items()},
    }


def tell(rows: list[dict[str, Any]], name: str) -> None:
    """Prints a table, with a row's field `name` in front."""
    width = max(len(str(row[name])) for row in rows) + 1
    print(f"{'':{width}}{'pathways_lm':>13}{'PyTorch eager':>16}{'keeping memory':>17}{'ratio':>8}   pair by pair")
    for row in rows:
        ours, theirs, keeping = (row["median_seconds"][side] for side in (OURS, THEIRS, THEIRS_KEEPING))
        low, high = row["pairwise_ratio_min_max"]
        times = f"{ours:12.3f}s{theirs:15.3f}s{keeping:16.3f}s"
        print(f"{row[name]:{width}}{times}{row['ratio']:8.2f}   {low:.2f} to {high:.2f}")


def circumstances() -> dict[str, Any]:
    """When, where and with what something was measured."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "flax", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    machine = {"cores": os.cpu_count(), "processor": _processor(), "load_average": round(os.getloadavg()[0], 2)}
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine, "versions": versions}


def write(out: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures with their circumstances, as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**circumstances(), **figures}, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
