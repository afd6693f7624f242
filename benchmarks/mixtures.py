"""Shares that follow the losses of an easy and a hard task, beside fixed ones.

    python -m benchmarks.mixtures --seed 0
    python -m benchmarks.mixtures --seed 0 --only loss_ratio

A small decoder learns two of the tasks that need no download, with several fixed shares, with `loss_ratio` and with
`excess_loss`, for the same number of steps. What `excess_loss` measures losses against is where the run of equal shares
ended, as DoReMi's references come from a run before. Prints a table, writes benchmarks/results/mixtures.json, in which
other seeds stay and with `--only` other runs, and draws docs/mixtures.png of seed 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EASY, HARD = "dates", "spelling"
CONFIG = "configs/palm/tiny.py"
STEPS = 800
SMALL = (
    *("model.num_layers=2", "model.embed_dim=96", "model.num_heads=4", "model.head_dim=24", "model.mlp_dim=256"),
    *("model.vocab_size=1024", "data.sequence_length=64", "data.batch_size=8", f"train.num_steps={STEPS}"),
    *("data.objective=text_to_text", "data.inputs=causal", "data.mixture=text_to_text", "sample.num_tokens=4"),
    *("optimizer.schedule=linear", "train.log_every=20", "train.eval_every=160", f"train.checkpoint_every={STEPS}"),
)
EQUAL = "0.5"
FIXED = ("0.25", EQUAL, "0.75", "0.9")
ADAPTIVE = {
    "loss_ratio": ("mixing.rate=0.5", "mixing.smoothing=0.02", "mixing.interval=20"),
    "excess_loss": ("mixing.rate=0.1", "mixing.smoothing=0.02", "mixing.interval=20"),
}
RESULTS = Path(__file__).parent / "results" / "mixtures.json"
Runs = dict[str, dict[str, Any]]


def changes(name: str, runs: Runs) -> tuple[str, ...]:
    """The mixing section with a fixed share of the hard task, or one that follows the losses from equal shares on."""
    if name not in ADAPTIVE:
        return ("mixing.rule=fixed", f"mixing.weights={EASY}={1 - float(name):g},{HARD}={name}")
    rule = (f"mixing.rule={name}", f"mixing.weights={EASY}=0.5,{HARD}=0.5", *ADAPTIVE[name])
    if name == "excess_loss":
        easy, hard = final(runs[EQUAL])
        rule += (f"mixing.references={EASY}={easy:.4f},{HARD}={hard:.4f}",)
    return rule


def final(run: dict[str, Any]) -> tuple[float, float]:
    """Both validation losses at the end."""
    easy, hard = (run["losses"][task][-1][1] for task in (EASY, HARD))
    return easy, hard


def trained(settings: tuple[str, ...]) -> dict[str, Any]:
    """Validation losses of both tasks, and the hard one's share, over the steps of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pathways_lm", "train", CONFIG, "--run", folder + "/run"]
        subprocess.run(command + [f"--set={change}" for change in settings], check=True)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if row["kind"] == "validation"]
    return {
        "losses": {task: [[row["step"], row["tasks"][task]["loss"]] for row in validated] for task in (EASY, HARD)},
        "share": [[row["step"], row["shares"][HARD]] for row in rows if row["kind"] == "train"],
    }


def draw(runs: Runs, path: Path) -> None:
    """Both losses and the hard task's share over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3)
    colors = dict(zip(ADAPTIVE, ("#d55e00", "#009e73"), strict=True))
    for name, run in runs.items():
        strong = name in ADAPTIVE
        style = {"color": colors[name]} if strong else {"color": "#0072b2", "alpha": 0.1 + 0.9 * float(name)}
        style["linewidth"] = 2.2 if strong else 1.2
        label = name if strong else f"fixed, {float(name):.0%} {HARD}"
        for axes, task in ((left, EASY), (middle, HARD)):
            axes.plot(*zip(*run["losses"][task], strict=True), label=label, **style)
        right.plot(*zip(*run["share"], strict=True), **style)
    titles = (f"{EASY}, validation loss", f"{HARD}, validation loss", f"share of {HARD}")
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
    for axes in (left, middle):
        axes.set_yscale("log")
    right.set_ylim(0, 1)
    left.legend(fontsize="small")
    figure.savefig(path)


def show(runs: Runs) -> None:
    """A table, and what the best fixed shares are beaten by in both losses."""
    print(f"| shares | {EASY} | {HARD} | sum | {HARD}'s share, mean | at the end |\n|---|---|---|---|---|---|")
    for name, run in runs.items():
        easy, hard = final(run)
        shares = [share for _, share in run["share"]]
        mean = sum(shares) / len(shares)
        print(f"| {name} | {easy:.4f} | {hard:.4f} | {easy + hard:.4f} | {mean:.2f} | {shares[-1]:.2f} |")
    fixed = {name: final(run) for name, run in runs.items() if name not in ADAPTIVE}
    if fixed:
        best = min(fixed, key=lambda name: sum(fixed[name]))
        better = [name for name in ADAPTIVE if name in runs and all(map(float.__le__, final(runs[name]), fixed[best]))]
        print(f"the lowest sum of fixed shares: {best}; in both losses at or below it: {', '.join(better) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of parameters and data")
    names = [*FIXED, *ADAPTIVE]
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="run these; none: draw what there is")
    arguments = parser.parse_args()
    results: dict[str, Runs] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in arguments.only:
        runs = results.get(str(arguments.seed), {})
        seeds = (f"train.seed={arguments.seed}", f"data.seed={arguments.seed}")
        runs[name] = trained((*SMALL, *seeds, *changes(name, runs)))
        results[str(arguments.seed)] = {name: runs[name] for name in (*FIXED, *ADAPTIVE) if name in runs}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    runs = results.get(str(arguments.seed), {})
    show(runs)
    if "0" in results:
        draw(results["0"], Path("docs/mixtures.png"))


if __name__ == "__main__":
    main()
