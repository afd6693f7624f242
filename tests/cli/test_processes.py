"""Two processes with four devices each, a pod of two data by two tensor devices, as one with eight."""

import os
import signal
import socket
import time

import pytest


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(micro, arguments):
    """Both processes of one program."""
    port = free_port()
    flags = ["--cpu-devices", "4", "--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id"]
    return [micro.start(*arguments, *flags, str(number)) for number in range(2)]


def wait_for_step(micro, run, step, processes):
    """Returns when the figures of `step` are written; fails where a process ends before."""
    while not ((run / "metrics.jsonl").is_file() and any(row["step"] >= step for row in micro.rows(run))):
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.001)


def finish(processes) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        texts = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


SETTINGS = ("train.num_steps=12", "mesh.pod=2", "mesh.data=2", "mesh.tensor=2")


@pytest.fixture(scope="module")
def losses_alone(micro, tmp_path_factory):
    """Of one process with all devices, without interruption."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = micro.call(*micro.train(run, *SETTINGS), "--cpu-devices", "8")
    assert done.returncode == 0, done.stderr
    return micro.losses(run)


def test_two_processes(micro, tmp_path, losses_alone):
    """Losses are those of one process; a SIGTERM to one stops both after one step; one process reads what two wrote."""
    two = tmp_path / "two"
    arguments = micro.train(two, *SETTINGS)
    processes = start(micro, arguments)
    wait_for_step(micro, two, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert "Traceback" not in ended[0][2] + ended[1][2]
    assert "saved and stopped" in ended[0][1]
    # Only the first speaks of the run; the rest is what the network library says.
    assert "step" not in ended[1][1]
    stopped = micro.steps(two)[-1]
    assert 2 <= stopped < 12
    assert micro.rows(two)[-1]["step"] == stopped

    ended = finish(start(micro, arguments))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert f"after step {stopped}" in ended[0][1]
    assert micro.losses(two) == pytest.approx(losses_alone, rel=1e-6)
    assert list(micro.losses(two)) == list(range(1, 13))

    assert micro.main("evaluate", str(two)) == 0
    longer = micro.train(two, "train.num_steps=13")
    assert micro.main(*longer) == 0
    assert micro.steps(two)[-1] == 13


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lost_process(micro, tmp_path, losses_alone, victim):
    """Killed by the system, the first, which the others depend on, or another. One process goes on alone."""
    run = tmp_path / "run"
    processes = start(micro, micro.train(run, *SETTINGS, "train.checkpoint_every=2"))
    wait_for_step(micro, run, 5, processes)
    processes[victim].kill()
    killed = time.monotonic()
    processes[1 - victim].wait(timeout=60)
    assert time.monotonic() - killed < 60
    code, _, err = finish(processes)[1 - victim]
    assert code == os.EX_TEMPFAIL == 75
    ours = [line for line in err.splitlines() if line.startswith("pathways-lm: ")]
    assert len(ours) == 1
    assert f"process {victim} of 2 was lost after step " in ours[0]
    assert "go on from the last checkpoint" in ours[0]
    assert "Traceback" not in err
    step = int(ours[0].partition("after step ")[2].split()[0].rstrip(":"))
    assert 4 <= step <= 12

    done = micro.call(*micro.train(run, *SETTINGS), "--cpu-devices", "8")
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stdout
    assert micro.losses(run) == pytest.approx(losses_alone, rel=1e-5)


def test_what_ends_one_ends_all(micro, tmp_path):
    """The first process can't write any more: bad input, of which the other, which writes no log, is told."""
    run = tmp_path / "run"
    processes = start(micro, micro.train(run, *SETTINGS, "train.num_steps=2000", "train.checkpoint_every=5"))
    wait_for_step(micro, run, 7, processes)
    (run / "checkpoints").rename(tmp_path / "saved")
    (run / "checkpoints").write_text("")
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [2, 2], ended
    for _, _, err in ended:
        ours = [line for line in err.splitlines() if line.startswith("pathways-lm: ")]
        assert len(ours) == 1
        assert f"could not be written to '{run / 'checkpoints'}'" in ours[0]
        assert "Traceback" not in err
    # What was written is whole.
    (run / "checkpoints").unlink()
    (tmp_path / "saved").rename(run / "checkpoints")
    last = micro.steps(run)[-1]
    done = micro.call(*micro.train(run, *SETTINGS, f"train.num_steps={last + 1}"), "--cpu-devices", "8")
    assert done.returncode == 0, done.stderr
    assert f"after step {last}" in done.stdout.replace("\n", "")
