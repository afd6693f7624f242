"""A run that is ended and started again ends where one ends that was left alone, in every bit."""

import importlib.util
import random
import signal
import subprocess
from pathlib import Path

import pytest

THERE = importlib.util.spec_from_file_location("kill_many", Path(__file__).parent / "kill_many.py")
kill_many = importlib.util.module_from_spec(THERE)
THERE.loader.exec_module(kill_many)
wait_for, logged = kill_many.wait_for, kill_many.logged


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_sigkill(micro, undisturbed, tmp_path, kills):
    run = tmp_path / "run"
    line = micro.train(run, "train.checkpoint_every=5")
    start = lambda: micro.start(*line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: E731
    kill_many.kill_at_random(start, run, random.Random(kills), kills, 60)
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
