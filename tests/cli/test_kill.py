"""A run that is ended and started again ends where one ends that was left alone, in every bit."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    """Returns as soon as it happened; fails where the process ends before."""
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


def logged(run: Path, step: int) -> Callable[[], bool]:
    """Whether the figures of `step` or a later one are in metrics.jsonl."""
    metrics = run / "metrics.jsonl"

    def happened() -> bool:
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        return any(f'"step": {number},' in line for line in lines for number in range(step, 61) if "train" in line)

    return happened


def writing(run: Path, step: int) -> Callable[[], bool]:
    """Whether a checkpoint of `step` or a later one has been begun, counting those that are not there yet."""
    folder = run / "checkpoints"
    old = set(folder.glob("*"))
    return lambda: any(int(path.name.partition(".")[0]) >= step for path in set(folder.glob("*")) - old)


def kill_at_random(micro, run: Path, draw: random.Random, kills: int) -> None:
    """Kills while training starts, between two steps, and while a checkpoint is written, in turn."""
    for number in range(kills):
        step = 55 * (number + 1) // kills
        before = micro.steps(run)
        with micro.start(*micro.train(run, "train.checkpoint_every=5"), stderr=subprocess.DEVNULL) as process:
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
        after = micro.steps(run)
        assert len(after) >= min(len(before), 2)
        assert after[-1:] >= before[-1:]


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_sigkill(micro, undisturbed, tmp_path, kills):
    run = tmp_path / "run"
    kill_at_random(micro, run, random.Random(kills), kills)
    at = micro.steps(run)[-1]
    last = micro.call(*micro.train(run, "train.checkpoint_every=5"))
    assert last.returncode == 0, last.stderr
    # No more is lost than what came after the newest checkpoint, and nothing was damaged.
    assert f"resuming '{run}' after step {at}" in last.stdout.replace("\n", "")
    assert not (run / "damaged").exists()
    micro.assert_same_bits(run, undisturbed)
    assert micro.losses(run) == micro.losses(undisturbed)


def test_sigterm_then_ctrl_c(micro, undisturbed, tmp_path):
    """Each saves after the step it is in."""
    run = tmp_path / "run"
    for number, step in ((signal.SIGTERM, 7), (signal.SIGINT, 27)):
        with micro.start(*micro.train(run)) as process:
            wait_for(process, logged(run, step))
            process.send_signal(number)
            out, err = process.communicate()
        assert (process.returncode, err) == (128 + number, "")
        assert "saved and stopped" in out
        stopped = micro.rows(run)[-1]
        assert (stopped["kind"], stopped["what"]) == ("event", "stop")
        assert stopped["step"] == micro.steps(run)[-1] >= step
    last = micro.call(*micro.train(run))
    assert last.returncode == 0, last.stderr
    micro.assert_same_bits(run, undisturbed)
    figures = [row["step"] for row in micro.rows(run) if row["kind"] == "train"]
    assert figures == list(range(1, 61))
    assert micro.losses(run) == micro.losses(undisturbed)


def test_ctrl_c_while_data_is_prepared(micro, tmp_path):
    """Packing in an empty cache starts tensorflow: long enough to be interrupted."""
    with micro.start(*micro.train(tmp_path / "run", f"data.cache_dir={tmp_path}/cache")) as process:
        wait_for(process, lambda: any((tmp_path / "cache").glob("packed/*/.begun*")))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not list((tmp_path / "cache").glob("packed/*/manifest.json"))
    assert not list((tmp_path / "cache").glob("packed/*/.begun*"))
