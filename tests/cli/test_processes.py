"""Two processes with four devices each, a pod of two data by two tensor devices, as one with eight."""

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


def finish(processes) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        texts = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


SETTINGS = ("train.num_steps=12", "mesh.pod=2", "mesh.data=2", "mesh.tensor=2")


def test_two_processes(micro, tmp_path):
    """Losses are those of one process; a SIGTERM to one stops both after one step; one process reads what two wrote."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = micro.call(*micro.train(one, *SETTINGS), "--cpu-devices", "8")
    assert alone.returncode == 0, alone.stderr

    arguments = micro.train(two, *SETTINGS)
    processes = start(micro, arguments)
    while not ((two / "metrics.jsonl").is_file() and any(row["step"] >= 2 for row in micro.rows(two))):
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.001)
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
    assert micro.losses(two) == pytest.approx(micro.losses(one), rel=1e-6)
    assert list(micro.losses(two)) == list(range(1, 13))

    assert micro.main("evaluate", str(two)) == 0
    longer = micro.train(two, "train.num_steps=13")
    assert micro.main(*longer) == 0
    assert micro.steps(two)[-1] == 13
