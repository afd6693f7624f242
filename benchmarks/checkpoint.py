"""What checkpoints cost: the pause in training, and the speed of writing and reading: python -m benchmarks.checkpoint

A decoder of about 100 M parameters with its Adam moments, on the CPU. Steps are timed without a checkpoint; then one is
saved between two steps, and the steps that run while it is written are timed. The pause is what `save` itself takes,
in steps; what the steps after it lose to the writing in the background is told beside it. Then all of it is written and
waited for, and restored, in turn with `torch.save` and `safetensors` of the same bytes. Nothing is flushed to the disk,
by none of them; restored is what the system may still have in memory.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import torch

from benchmarks.side_by_side import draw_tokens, write
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, initial_state, to_items
from pathways_lm.train.step import compile_step, make_step

CONFIG = ModelConfig(num_layers=12, embed_dim=768, num_heads=12, head_dim=64, mlp_dim=3072, vocab_size=8192)
SHAPE = (8, 64)


def timed(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def pause(compiled: Any, state: Any, batch: Batch, folder: Path, steps: int) -> tuple[dict[str, Any], Any]:
    """Seconds of steps before and beside a save, and of the save; and the last state."""

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, batch))

    step()
    before = [timed(step) for _ in range(steps)]
    with closing(Store(folder)) as store:
        began = time.perf_counter()
        store.save(1, to_items(state), {})
        blocked = time.perf_counter() - began
        beside = [timed(step) for _ in range(steps)]
        store.wait()
    usual = statistics.median(before)
    return {
        "step_seconds": usual,
        "save_call_seconds": blocked,
        "pause_in_steps": blocked / usual,
        "steps_beside_writing_seconds": beside,
        "lost_beside_writing_in_steps": sum(seconds / usual - 1 for seconds in beside),
    }, state


def ours(state: Any, abstract: Any, folder: Path) -> tuple[float, float]:
    """Seconds to write and to read, until all is there."""
    with closing(Store(folder)) as store:

        def save() -> None:
            store.save(1, to_items(state), {})
            store.wait()

        wrote = timed(save)
        read = timed(lambda: jax.block_until_ready(store.restore(to_items(abstract), print)))
    return wrote, read


def by_torch(arrays: dict[str, np.ndarray], folder: Path) -> tuple[float, float]:
    folder.mkdir()
    file, tensors = folder / "state.pt", {name: torch.from_numpy(array) for name, array in arrays.items()}
    return timed(lambda: torch.save(tensors, file)), timed(lambda: torch.load(file, weights_only=True))


def by_safetensors(arrays: dict[str, np.ndarray], folder: Path) -> tuple[float, float]:
    folder.mkdir()
    file = folder / "state.safetensors"
    return timed(lambda: safetensors.numpy.save_file(arrays, file)), timed(lambda: safetensors.numpy.load_file(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint.json"))
    arguments = parser.parse_args()
    model = Model(CONFIG, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    schedule = make_schedule(OptimizerConfig(), 1)
    optimizer = make_optimizer(OptimizerConfig(name="adamw"), schedule, model)
    tokens_BL = draw_tokens(CONFIG, SHAPE)
    batch = jax.device_put(Batch(tokens_BL, tokens_BL), model.rules("batch", None))
    step = make_step(model, optimizer, schedule, TrainConfig(num_steps=1))
    compiled = compile_step(step, model, optimizer, batch)
    state = initial_state(model, optimizer, 0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    seconds: dict[str, list[tuple[float, float]]] = {"pathways_lm": [], "torch": [], "safetensors": []}
    with tempfile.TemporaryDirectory() as folder:
        paused, state = pause(compiled, state, batch, Path(folder, "paused"), arguments.steps)
        shutil.rmtree(Path(folder, "paused"))
        leaves = jax.tree_util.tree_leaves_with_path(to_items(state))
        arrays = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}
        for _ in range(arguments.repeats):
            for name, write_and_read in (("torch", by_torch), ("safetensors", by_safetensors)):
                seconds[name].append(write_and_read(arrays, Path(folder, name)))
                shutil.rmtree(Path(folder, name))
            seconds["pathways_lm"].append(ours(state, abstract_state(model, optimizer), Path(folder, "ours")))
            shutil.rmtree(Path(folder, "ours"))
    rows = []
    for name, pairs in seconds.items():
        wrote, read = (statistics.median(times) for times in zip(*pairs, strict=True))
        rates = {"save_mb_per_second": size / wrote / 1e6, "restore_mb_per_second": size / read / 1e6}
        rows.append({"name": name, "save_seconds": wrote, "restore_seconds": read, **rates})
    print(f"{num_params(model):,} parameters, {size / 1e6:,.0f} MB with the moments")
    lost = paused["lost_beside_writing_in_steps"]
    print(
        f"the pause of an asynchronous checkpoint: {paused['save_call_seconds']:.2f} s, {paused['pause_in_steps']:.2f} "
        f"steps of {paused['step_seconds']:.2f} s; steps beside the writing lose {lost:.2f} steps"
    )
    for row in rows:
        print(
            f"{row['name']:12} save {row['save_seconds']:6.2f} s {row['save_mb_per_second']:7.0f} MB/s   "
            f"restore {row['restore_seconds']:6.2f} s {row['restore_mb_per_second']:7.0f} MB/s"
        )
    figures = {"parameters": num_params(model), "bytes": size, "pause": paused, "rows": rows, "seconds": seconds}
    write(arguments.out, figures)


if __name__ == "__main__":
    main()
