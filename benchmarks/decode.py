"""Greedy decoding beside transformers' `generate`, GPT-2's 124M shape on the CPU: python -m benchmarks.decode

Same weights (random), same prompts; in fp32, and all in bf16 on both sides, where roundings differ and so, after some
tokens, do texts. Both write in turn in one process, so that whatever else the machine does
falls on both. Tokens a second are those written, divided by the time of the whole call, prompt included; medians of the
rounds, their ratio, and the spread of the rounds' ratios are printed, and written as JSON.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks.side_by_side import write
from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig
from pathways_lm.convert.convert import import_checkpoint
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules

PROMPT, WRITTEN = 32, 64


def both(folder: Path, precision: str):
    """transformers' model, and a generator with its weights."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    theirs.save_pretrained(folder / "published")
    import_checkpoint(folder / "published", folder / "run")
    config = RunFolder(folder / "run").experiment().model
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=1)))
    with closing(Store(folder / "run", readonly=True)) as store:
        params = store.restore({"params": Model(config, rules).abstract}, print)[1]["params"]
    model = Model(config, rules)
    if precision == "bf16":
        theirs = theirs.to(torch.bfloat16)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        model = Model(config, rules, jnp.dtype(jnp.bfloat16))
    # No token ends a text, and none stands before the prompt.
    return theirs, Generator(model, Form(config.vocab_size, end=-1, begin=None, never=()), 1024), params


def compare(precision: str, models, batch: int, rounds: int) -> dict:
    """One row of the table."""
    theirs, generator, params = models
    prompts = np.random.default_rng(batch).integers(1, 50_000, (batch, PROMPT))
    ids, greedy, key = torch.from_numpy(prompts), Sampler(temperature=0), jax.random.key(0)

    def torch_writes() -> np.ndarray:
        with torch.inference_mode():
            options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=WRITTEN, **options)
        return out[:, PROMPT:].numpy()

    def we_write() -> np.ndarray:
        written = generator.write(params, prompts.tolist(), greedy, WRITTEN, key)
        return np.array([one.tokens for one in written])

    same = np.mean(torch_writes() == we_write())
    times: dict[str, list[float]] = {"torch": [], "ours": []}
    for _ in range(rounds):
        for name, generate in (("torch", torch_writes), ("ours", we_write)):
            start = time.perf_counter()
            generate()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratios = sorted(their / our for their, our in zip(times["torch"], times["ours"], strict=True))
    return {
        "precision": precision,
        "batch": batch,
        "tokens_per_second": {name: batch * WRITTEN / median for name, median in medians.items()},
        "ratio": medians["torch"] / medians["ours"],
        "ratios": [ratios[0], ratios[-1]],
        "same_tokens": float(same),
        "rounds": rounds,
    }


def main() -> None:
    """Prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decode.json"))
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    for precision in arguments.precision:
        with tempfile.TemporaryDirectory() as folder:
            models = both(Path(folder), precision)
        rows += [compare(precision, models, batch, arguments.rounds) for batch in arguments.batches]
    print(f"      {'batch':>5}  {'torch tok/s':>11}  {'ours tok/s':>10}  ratio  (rounds from, to)  same tokens")
    for row in rows:
        speed, (low, high) = row["tokens_per_second"], row["ratios"]
        print(
            f"{row['precision']:6}"
            f"{row['batch']:>5}  {speed['torch']:>11.1f}  {speed['ours']:>10.1f}  {row['ratio']:.2f}"
            f"   ({low:.2f}, {high:.2f})       {row['same_tokens']:.4f}"
        )
    write(arguments.out, {"prompt_tokens": PROMPT, "written_tokens": WRITTEN, "rows": rows})


if __name__ == "__main__":
    main()
