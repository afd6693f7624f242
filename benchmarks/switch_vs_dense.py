"""A dense T5 against its Switch with more and more experts: as many steps, as many FLOPs a token, the same data.

    python -m benchmarks.switch_vs_dense [--steps 1000] [--plot docs/switch-vs-dense.png]

Trains `configs/t5/tiny.py` and `configs/switch/tiny.py` with 8 and 32 experts on the text that comes with Python. The
dense model is trained with Switch's smaller draws as well, so that what initialisation does is told apart from what
experts do. Groups are of a whole batch, as a device's are in the paper: with groups of one sequence, 32 experts would
drop a quarter of the tokens. Prints the losses, and after how many steps each run has reached the last loss of either
dense one; writes them to benchmarks/results/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pathways_lm.report.read import read_run, series

SWITCH = ["configs/switch/tiny.py", "--set=model.moe.group_tokens=2048"]
RUNS = {
    "dense": ["configs/t5/tiny.py"],
    "dense, Switch's draws": [
        "configs/t5/tiny.py",
        "--set=model.init=truncated_fan_in",
        "--set=model.init_scale=0.1",
    ],
    "Switch, 8 experts": SWITCH,
    "Switch, 32 experts": [*SWITCH, "--set=model.moe.num_experts=32"],
}
RESULTS = Path(__file__).parent / "results" / "switch_vs_dense.json"


def train(arguments: list[str], steps: int, folder: Path) -> dict:
    """Steps and losses of a run."""
    schedule = [f"--set=train.num_steps={steps}", "--set=train.eval_every=50", f"--set=train.checkpoint_every={steps}"]
    command = [sys.executable, "-m", "pathways_lm", "train", *arguments, "--run", str(folder), *schedule]
    subprocess.run(command, check=True)
    run = read_run(folder)
    at, loss = series(run.validation, "loss")
    _, train_loss = series(run.train, "loss")
    _, seconds = series(run.train, "step_seconds")
    return {
        "steps": at.tolist(),
        "validation": loss.tolist(),
        "train": train_loss[-5:].mean(),
        "step_seconds": float(np.median(seconds)),
        "num_params": run.facts["num_params"],
        "num_active_params": run.facts["num_active_params"],
    }


def steps_to(curve: dict, loss: float) -> float | None:
    """The step at which the validation loss first is at or below `loss`, between two points by a straight line."""
    for index in range(1, len(curve["steps"])):
        if curve["validation"][index] <= loss:
            (a, b), (high, low) = curve["steps"][index - 1 : index + 1], curve["validation"][index - 1 : index + 1]
            return a + (b - a) * (high - loss) / (high - low)
    return None


def ratio(curve: dict, dense: dict, steps: int) -> str:
    """How many times fewer steps a run needs to a dense model's last loss."""
    reached = steps_to(curve, dense["validation"][-1])
    return "not reached" if reached is None else f"{steps / reached:.2f}x fewer steps"


def plot(curves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in curves.items():
        axes.plot(curve["steps"], curve["validation"], label=f"{name}: {curve['validation'][-1]:.3f}")
    axes.set(xlabel="step", ylabel="validation loss, nats a target", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plot", type=Path, default=Path("docs/switch-vs-dense.png"))
    options = parser.parse_args()
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, arguments) in enumerate(RUNS.items()):
            curves[name] = train(arguments, options.steps, Path(folder, str(number)))
            RESULTS.write_text(json.dumps(curves, indent=1) + "\n")
    for name, curve in curves.items():
        ratios = [ratio(curve, curves[dense], options.steps) for dense in ("dense", "dense, Switch's draws")]
        print(
            f"{name:24} {curve['num_params']:>12,} parameters, {curve['num_active_params']:,} active  "
            f"loss {curve['validation'][-1]:.4f}  {curve['step_seconds']:.3f} s a step  "
            f"dense's last loss: {ratios[0]}; with Switch's draws: {ratios[1]}"
        )
    plot(curves, options.plot)


if __name__ == "__main__":
    main()
