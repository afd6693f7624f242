"""Shares that follow the losses of an easy and a hard task, beside fixed ones.

    python -m benchmarks.mixtures

A small decoder learns two of the tasks that need no download, with `mixing.rule=excess_loss` and with several fixed
shares, for the same number of steps from the same seed. Draws docs/mixtures.png, prints a table, writes
benchmarks/results/mixtures.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

EASY, HARD = "arithmetic", "spelling"
CONFIG = "configs/palm/tiny.py"
STEPS = 300
SMALL = (
    *("model.num_layers=2", "model.embed_dim=96", "model.num_heads=4", "model.head_dim=24", "model.mlp_dim=256"),
    *("model.vocab_size=1024", "data.sequence_length=64", "data.batch_size=16", f"train.num_steps={STEPS}"),
    *("data.objective=text_to_text", "data.inputs=causal", "data.mixture=text_to_text", "sample.num_tokens=4"),
    *("optimizer.hold_steps=100", "train.log_every=10", "train.eval_every=50", f"train.checkpoint_every={STEPS}"),
)
FIXED = (0.25, 0.5, 0.75)
RESULTS = Path(__file__).parent / "results" / "mixtures.json"


def changes(hard: float | None) -> tuple[str, ...]:
    """The mixing section with a fixed share of the hard task, or one that follows the losses from equal shares on."""
    if hard is None:
        rule = ("mixing.rule=excess_loss", "mixing.interval=20", "mixing.rate=0.3", "mixing.smoothing=0.3")
        # What the easy task comes down to in a few hundred steps whatever its share; the hard one stays above its own.
        return (*rule, f"mixing.weights={EASY}=0.5,{HARD}=0.5", f"mixing.references={EASY}=1.8,{HARD}=1")
    return ("mixing.rule=fixed", f"mixing.weights={EASY}={1 - hard:g},{HARD}={hard:g}")


def trained(hard: float | None, folder: Path) -> dict:
    """Validation losses of both tasks, and the hard one's share, over the steps of a run."""
    command = [sys.executable, "-m", "pathways_lm", "train", CONFIG, "--run", str(folder)]
    subprocess.run(command + [f"--set={change}" for change in (*SMALL, *changes(hard))], check=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if row["kind"] == "validation"]
    return {
        "losses": {task: [[row["step"], row["tasks"][task]["loss"]] for row in validated] for task in (EASY, HARD)},
        "share": [[row["step"], row["shares"][HARD]] for row in rows if row["kind"] == "train"],
    }


def draw(runs: dict[str, dict], path: Path) -> None:
    """Both losses and the hard task's share over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3)
    for name, run in runs.items():
        strong = name == "adaptive"
        style = {"color": "#d55e00"} if strong else {"color": "#0072b2", "alpha": 0.2 + 0.8 * float(name)}
        label = name if strong else f"fixed, {float(name):.0%} {HARD}"
        for axes, task in ((left, EASY), (middle, HARD)):
            axes.plot(*zip(*run["losses"][task], strict=True), label=label, linewidth=2.2 if strong else 1.2, **style)
        right.plot(*zip(*run["share"], strict=True), linewidth=2.2 if strong else 1.2, **style)
    titles = (f"{EASY}, validation loss", f"{HARD}, validation loss", f"share of {HARD}")
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
    for axes in (left, middle):
        axes.set_yscale("log")
    right.set_ylim(0, 1)
    left.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, hard in {"adaptive": None, **{str(share): share for share in FIXED}}.items():
            runs[name] = trained(hard, Path(folder, name))
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    draw(runs, Path("docs/mixtures.png"))
    print(f"| shares | {EASY} | {HARD} | sum | {HARD}'s share at the end |\n|---|---|---|---|---|")
    for name, run in runs.items():
        easy, hard = (run["losses"][task][-1][1] for task in (EASY, HARD))
        print(f"| {name} | {easy:.3f} | {hard:.3f} | {easy + hard:.3f} | {run['share'][-1][1]:.2f} |")


if __name__ == "__main__":
    main()
