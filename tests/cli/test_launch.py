"""Several processes as one command: what is started, what is started again, and what it comes to."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pathways_lm.cli import launch, main, parse
from pathways_lm.cli.launch import Launcher

PATIENCE = 300


def test_lines_of_several_processes():
    """Devices are shared out; alone, a process needs no coordinator."""
    launcher = Launcher(["train", "c.py", "--run", "r"], 8)
    first, second = launcher.lines(2, 1234)
    assert first[:4] == second[:4] == ["train", "c.py", "--run", "r"]
    parsed = [parse(line) for line in (first, second)]
    assert [each.process_id for each in parsed] == [0, 1]
    assert {(each.coordinator, each.num_processes, each.cpu_devices) for each in parsed} == {("localhost:1234", 2, 4)}
    [alone] = launcher.lines(1, 1234)
    assert alone == ["train", "c.py", "--run", "r", "--cpu-devices", "8"]
    assert Launcher(["train", "c.py"], None).lines(1, 1) == [["train", "c.py"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes", "0", "--", "train", "c.py"], "--processes 0"),
        (["--processes", "3", "--cpu-devices", "8", "--", "train", "c.py"], "--cpu-devices 8"),
        (["--processes", "2", "--restarts", "-1", "--", "train", "c.py"], "--restarts -1"),
        (["--processes", "2"], "launch --processes 2 -- train CONFIG"),
        (["--processes", "2", "--", "generate", "r", "--prompt", "a"], "not 'generate r --prompt a'"),
        (["--processes", "2", "--", "train", "c.py", "--process-id", "0"], "--process-id"),
        (["--processes", "2", "--", "train", "c.py", "--cpu-devices", "4"], "--cpu-devices"),
    ],
)
def test_bad_input(capfd, monkeypatch, arguments, said):
    monkeypatch.setattr(Launcher, "run_once", lambda *_: pytest.fail("started"))
    assert main(["launch", *arguments]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line


def test_a_command_that_argparse_refuses(capfd):
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--processes", "2", "--", "train", "c.py", "--speed", "9"])
    assert ended.value.code == 2
    assert "--speed" in capfd.readouterr().err


@pytest.fixture
def play(monkeypatch):
    """`play(script, *flags)` launches processes that run `script`, Python, with their number and how many there are.

    Returns the launcher's exit code and how many were started each time.
    """
    counts = []

    def call(script, *flags, processes=2):
        def run_once(self, count):
            counts.append(count)
            return original(self, count)

        def begin(self, line):
            parsed = parse(line)
            number, count = (0, 1) if parsed.process_id is None else (parsed.process_id, parsed.num_processes)
            command = [sys.executable, "-c", script, str(number), str(count)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

        original = Launcher.run_once
        monkeypatch.setattr(Launcher, "run_once", run_once)
        monkeypatch.setattr(Launcher, "_start", begin)
        monkeypatch.setattr(launch, "_sleep", lambda seconds, launcher: pauses.append(seconds))
        code = main(["launch", "--processes", str(processes), *flags, "--", "train", "c.py"])
        return code, counts

    call.pauses = pauses = []
    return call


DIES = "import os, sys, time; number, count = map(int, sys.argv[1:]); "


def test_all_well(play, capfd):
    code, counts = play(DIES + "print('hello'); print('a'); print(f'I am {number}', file=sys.stderr)")
    assert (code, counts) == (0, [2])
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] a", "[0] hello", "[1] a", "[1] hello"]
    assert sorted(err.splitlines()) == ["[0] I am 0", "[1] I am 1"]


def test_bad_input_is_not_tried_again(play):
    assert play(DIES + "sys.exit(2)", "--restarts", "5") == (2, [2])


def test_a_lost_process_is_tried_again_with_growing_pauses(play, capfd):
    """Its own end is told, and not that of the other, which noticed it."""
    code, counts = play(
        DIES + "os.kill(os.getpid(), 9) if number else (time.sleep(0.3), sys.exit(75))", "--restarts", "3"
    )
    assert (code, counts) == (137, [2, 2, 2, 2])
    assert play.pauses == [1, 2, 4]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("process 1 of 2 ended with SIGKILL" in line for line in lines)
    assert "not started again: --restarts 3" in lines[-1]


def test_fewer_processes_where_the_same_one_keeps_dying(play):
    """The second of four dies as long as there are more than two; 4 -> 2."""
    script = DIES + "sys.exit(75 if number == 1 and count > 2 else 0)"
    assert play(script, "--restarts", "9", "--shrink", "--cpu-devices", "8", processes=4) == (0, [4, 4, 2])


def test_the_same_number_where_others_die(play, tmp_path):
    """Each time another one: no reason to do without it."""
    script = (
        f"import pathlib; here = pathlib.Path({str(tmp_path)!r}); {DIES}"
        "tries = len(list(here.glob(f'{number}-*'))); (here / f'{number}-{tries}').touch(); "
        "sys.exit(75 if tries < 3 and number == tries % 2 else 0)"
    )
    assert play(script, "--restarts", "9", "--shrink") == (0, [2, 2, 2, 2])


def test_without_shrink_the_number_stays(play):
    assert play(DIES + "sys.exit(75 if number == 1 else 0)", "--restarts", "2") == (75, [2, 2, 2])


def test_those_left_are_ended(play, monkeypatch):
    """A process that does not notice by itself that another one died."""
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.5)
    began = time.monotonic()
    code, _ = play(DIES + "sys.exit(1) if number else time.sleep(100)", "--restarts", "0")
    assert code == 1
    assert time.monotonic() - began < 50


def test_sigterm_is_passed_on(play, capfd):
    """Once to each; all say how they ended, and nothing is started again."""
    script = DIES + (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(143))); "
        "print('ready', flush=True); time.sleep(100)"
    )
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert play(script) == (143, [2])
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] asked", "[0] ready", "[1] asked", "[1] ready"]


def children(process: subprocess.Popen) -> dict[int, int]:
    """Process ids of what a launcher started, by their number in the program."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "--process-id" in words:
            found[int(words[words.index("--process-id") + 1])] = int(child)
    return found


SETTINGS = ("train.num_steps=12", "train.checkpoint_every=3", "mesh.pod=2", "mesh.data=2", "mesh.tensor=2")


@pytest.fixture(scope="module")
def whole(micro, tmp_path_factory):
    """A run of two processes that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = micro.call("launch", "--processes", "2", "--cpu-devices", "8", "--", *micro.train(run, *SETTINGS))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Of the other, only what the network library says.
    assert any(line.startswith("[0] step 12 ") for line in lines)
    assert not any(line.startswith("[1] step") for line in lines)
    return run


def killing(micro, run, victim, at, *flags):
    """Launches two processes and kills one after each of the steps `at`; returns exit code, output and errors."""
    line = ["launch", "--processes", "2", "--cpu-devices", "8", *flags, "--", *micro.train(run, *SETTINGS)]
    with micro.start(*line) as process:
        try:
            for step in at:
                while not (run / "metrics.jsonl").is_file() or max(micro.losses(run), default=0) < step:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.001)
                os.kill(children(process)[victim], signal.SIGKILL)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.send_signal(signal.SIGTERM)
    return process.returncode, out, err


def test_a_killed_process_is_started_again(micro, whole, tmp_path):
    """And the end is that of the run nothing happened to, in every bit."""
    run = tmp_path / "run"
    code, out, err = killing(micro, run, 1, [5])
    assert code == 0, err
    assert "[0] pathways-lm: process 1 of 2 was lost after step " in err
    assert "pathways-lm: process 1 of 2 ended with SIGKILL (killed, or out of memory); start 1 of 3 again" in err
    assert f"[0] resuming '{run}' after step " in out
    micro.assert_same_bits(run, whole, 12)
    assert micro.losses(run) == micro.losses(whole)


@pytest.mark.slow
def test_fewer_processes_go_on(micro, whole, tmp_path):
    """The same one dies twice: one process with all devices is left, and the losses stay."""
    run = tmp_path / "run"
    code, _, err = killing(micro, run, 1, [4, 8], "--shrink")
    assert code == 0, err
    assert "start 2 of 3 again from the last checkpoint, 1 process, in 2 s" in err
    assert micro.losses(run) == pytest.approx(micro.losses(whole), rel=1e-5)
