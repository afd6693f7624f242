"""Kills a run again and again at random moments, and compares its end with that of a run left alone.

python tests/cli/kill_many.py CONFIG --kills 100 --seed 1 --folder FOLDER --set train.checkpoint_every=5

In FOLDER are then the runs `alone` and `killed`. The config's train.log_every should be 1, or a low number.
Exit code 0 where both final checkpoints are the same in every bit, and so are all logged losses.
"""

import argparse
import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Start = Callable[[], subprocess.Popen]


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    """Returns as soon as it happened; fails where the process ends before."""
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


def logged(run: Path, step: int) -> Callable[[], bool]:
    """Whether the figures of `step` or a later one are in metrics.jsonl."""
    metrics = run / "metrics.jsonl"

    def happened() -> bool:
        if not metrics.is_file():
            return False
        # The last line may be half written.
        lines = metrics.read_text().split("\n")[:-1]
        return any(row["kind"] == "train" and row["step"] >= step for row in map(json.loads, lines[-20:]))

    return happened


def writing(run: Path, step: int) -> Callable[[], bool]:
    """Whether a checkpoint of `step` or a later one has been begun, counting those that are not there yet."""
    folder = run / "checkpoints"
    old = set(folder.glob("*"))
    return lambda: any(int(path.name.partition(".")[0]) >= step for path in set(folder.glob("*")) - old)


def finished(run: Path) -> list[int]:
    """The steps of the finished checkpoints."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit())


def kill_at_random(start: Start, run: Path, draw: random.Random, kills: int, steps: int) -> None:
    """Kills while training starts, between two steps, and while a checkpoint is written, in turn.

    Args:
      start: begins to train in `run`, or goes on.
      steps: by the last kill, nearly so many are done.
    """
    for number in range(kills):
        step = (steps - 5) * (number + 1) // kills
        before = finished(run)
        with start() as process:
            try:
                if number % 3 == 0:
                    # On a fast machine, some of these seconds would be enough to come to the end.
                    at, reached = time.monotonic() + draw.uniform(0.2, 8), logged(run, step)
                    wait_for(process, lambda at=at, reached=reached: time.monotonic() >= at or reached())
                else:
                    wait_for(process, (logged, writing)[number % 3 - 1](run, step))
                    time.sleep(draw.uniform(0, 0.05))
            finally:
                process.kill()
        assert process.returncode == -signal.SIGKILL
        # Finished checkpoints stay, but for those that made room for newer ones.
        after = finished(run)
        assert len(after) >= min(len(before), 2)
        assert after[-1:] >= before[-1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--cpu-devices", default="8")
    arguments = parser.parse_args()

    def start(run: Path, **options) -> subprocess.Popen:
        settings = [f"--set={setting}" for setting in arguments.overrides]
        command = ["train", arguments.config, "--run", str(run), *settings, "--cpu-devices", arguments.cpu_devices]
        return subprocess.Popen([sys.executable, "-m", "pathways_lm", *command], **options)

    def to_the_end(run: Path) -> None:
        with start(run, stdout=subprocess.DEVNULL) as process:
            pass
        assert process.returncode == 0

    alone, killed = arguments.folder / "alone", arguments.folder / "killed"
    to_the_end(alone)
    steps = finished(alone)[-1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    kill_at_random(lambda: start(killed, **quiet), killed, random.Random(arguments.seed), arguments.kills, steps)
    to_the_end(killed)
    assert not (killed / "damaged").exists()
    return compare(alone, killed, steps, arguments.kills)


def compare(alone: Path, killed: Path, steps: int, kills: int) -> int:
    """Prints what differs. Returns 0 where nothing does."""
    there = importlib.util.spec_from_file_location("conftest", Path(__file__).parent / "conftest.py")
    conftest = importlib.util.module_from_spec(there)
    there.loader.exec_module(conftest)
    expected, actual = (conftest.Micro.arrays(run, steps) for run in (alone, killed))
    losses = [conftest.Micro(None, None, None).losses(run) for run in (alone, killed)]
    assert expected.keys() == actual.keys()
    different = [name for name, array in expected.items() if array.tobytes() != actual[name].tobytes()]
    print(
        f"{kills} kills, {steps} steps: {len(expected)} arrays, {len(different)} differ {different}; "
        f"losses of {len(losses[0])} rows, {'the same' if losses[0] == losses[1] else 'not the same'}"
    )
    return int(bool(different) or losses[0] != losses[1])


if __name__ == "__main__":
    sys.exit(main())
