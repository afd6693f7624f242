"""From the command to the first optimizer step of the tiny PaLM: python -m benchmarks.startup

Cold, with no vocabulary, no packed corpus and no compiled program; then the same command with another run folder, which
finds all three. Each start is a process of its own. The validation before the first step, which the loop does, is part
of it. Parts are what the process itself noted: imports, reading or building the corpus, compiling the step, validation
with its sample (its programs compiled, too), and the rest.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.side_by_side import write

CONFIG = "configs/palm/tiny.py"
# What `pathways-lm train` does, with two clocks.
COMMAND = """
import json, sys, time
began = time.perf_counter()
import pathways_lm.cli.train as train
told = {"imports": time.perf_counter() - began}
prepare = train.prepare

def timed(*arguments):
    began = time.perf_counter()
    corpus = prepare(*arguments)
    told["data"] = time.perf_counter() - began
    return corpus

train.prepare = timed
from pathways_lm.cli import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps(told))
sys.exit(code)
"""


def start(run: Path, cache: Path) -> dict[str, float]:
    """Seconds of one start, and its parts."""
    changes = {"data.cache_dir": cache, "train.num_steps": 1, "train.watchdog_seconds": 0}
    arguments = ["train", CONFIG, "--run", str(run), *(f"--set={name}={value}" for name, value in changes.items())]
    told = run.with_suffix(".json")
    began = time.time()
    subprocess.run([sys.executable, "-c", COMMAND, str(told), *arguments], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (first,) = (row for row in rows if row["kind"] == "train" and row["step"] == 1)
    parts = json.loads(told.read_text())
    parts |= {kind: first[f"seconds_{kind}"] for kind in ("compile", "validation", "step")}
    whole = first["time"] - began
    return {"first_step": whole, **parts, "rest": whole - sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    arguments = parser.parse_args()
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name in starts:
                starts[name].append(start(Path(folder, name), Path(folder, "cache")))
    rows = [
        {"start": name, **{part: statistics.median(each[part] for each in told) for part in told[0]}}
        for name, told in starts.items()
    ]
    for row in rows:
        parts = "  ".join(f"{part} {row[part]:.1f}" for part in list(row)[2:])
        print(f"{row['start']}: first step done after {row['first_step']:.1f} s  ({parts})")
    write(arguments.out, {"config": CONFIG, "rows": rows, "starts": starts})


if __name__ == "__main__":
    main()
