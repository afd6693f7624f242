"""`pathways-lm launch`: several processes of one program on this machine, started again when one is lost."""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from pathways_lm.errors import ConfigError

# What the others need to notice a loss and say so; after that they are ended.
_GRACE_SECONDS = 20
_LONGEST_PAUSE_SECONDS = 60
# Codes that starting again cannot change: all is done, or the input is bad.
_FINAL = (0, 2)


class Ended(NamedTuple):
    """How one start ended: the exit code, and the process that ended first with it."""

    code: int
    process: int


class Launcher:
    """Starts, watches and ends the processes of one program."""

    def __init__(self, command: list[str], cpu_devices: int | None):
        """`command` is what stands behind `pathways-lm`; `cpu_devices` are shared out over the processes."""
        self._command, self._cpu_devices = command, cpu_devices
        self._running: list[subprocess.Popen[bytes]] = []
        self.asked: int | None = None
        """The signal by which the launcher itself was asked to stop."""

    def run_once(self, count: int) -> Ended:
        """Starts `count` processes and waits until all have ended."""
        self._running = [self._start(line) for line in self.lines(count, _free_port())]
        if self.asked is not None:
            self._pass_on(self.asked)
        readers = [reader for number in range(count) for reader in self._read(number)]
        first = self._wait()
        for reader in readers:
            reader.join()
        self._running = []
        return first

    def lines(self, count: int, port: int) -> list[list[str]]:
        """The command line of each process."""
        devices = [] if self._cpu_devices is None else ["--cpu-devices", str(self._cpu_devices // count)]
        alone = [*self._command, *devices]
        if count == 1:
            return [alone]
        joined = [*alone, "--coordinator", f"localhost:{port}", "--num-processes", str(count), "--process-id"]
        return [[*joined, str(number)] for number in range(count)]

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Passes Ctrl-C and SIGTERM on to the processes."""

        def ask(number: int, frame: object) -> None:
            self.asked = number
            self._pass_on(number)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, line: list[str]) -> subprocess.Popen[bytes]:
        # In sessions of their own, so that a Ctrl-C reaches each once: from here.
        command = [sys.executable, "-u", "-m", "pathways_lm", *line]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def _pass_on(self, number: int) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(number)

    def _read(self, number: int) -> list[threading.Thread]:
        process = self._running[number]
        streams = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        threads = [threading.Thread(target=_repeat, args=(number, source, target)) for source, target in streams]
        for thread in threads:
            thread.start()
        return threads

    def _wait(self) -> Ended:
        """The end of all; that of the first to end badly, where one did."""
        bad: Ended | None = None
        until = 0.0
        # All are asked: how one ended is known only then.
        while None in [process.poll() for process in self._running]:
            if bad is None:
                bad = self._bad()
                until = time.monotonic() + _GRACE_SECONDS
            elif time.monotonic() > until and self.asked is None:
                self._pass_on(signal.SIGKILL)
            time.sleep(0.05)
        return bad or self._bad() or Ended(0, 0)

    def _bad(self) -> Ended | None:
        ended = [(process.returncode, number) for number, process in enumerate(self._running) if process.returncode]
        # Of those found at once, one that was killed comes before those that only noticed it.
        return min((Ended(*end) for end in ended), key=lambda end: (end.code == os.EX_TEMPFAIL, end.code), default=None)


def main(arguments: argparse.Namespace) -> int:
    """Returns 0 when the run is done, 2 for bad input, 128 + a stopping signal, or how the last start ended."""
    command, count = _checked(arguments)
    launcher = Launcher(command, arguments.cpu_devices)
    pause, restarts, lost_before = 1.0, 0, None
    with launcher.stopping():
        while True:
            code, process = launcher.run_once(count)
            code = code if code >= 0 else 128 - code
            if code in _FINAL or launcher.asked or code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
                return code
            how = f"process {process} of {count} ended with {_told(code)}"
            if restarts == arguments.restarts:
                _say(f"{how}; not started again: --restarts {arguments.restarts}")
                return code
            restarts += 1
            if arguments.shrink and process == lost_before and count > 1:
                count = _fewer(count)
                process = -1
            lost_before = process
            _say(
                f"{how}; start {restarts} of {arguments.restarts} again from the last checkpoint, "
                f"{count} process{'es' if count > 1 else ''}, in {pause:.0f} s"
            )
            _sleep(pause, launcher)
            if launcher.asked:
                return 128 + launcher.asked
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _checked(arguments: argparse.Namespace) -> tuple[list[str], int]:
    """The command to start, and how often. Raises ConfigError for what cannot be started so."""
    from pathways_lm.cli import parse

    count: int = arguments.processes
    if count < 1:
        raise ConfigError(f"--processes {count} must be at least 1")
    if arguments.restarts < 0:
        raise ConfigError(f"--restarts {arguments.restarts} must be at least 0")
    devices = arguments.cpu_devices
    if devices is not None and (devices < 1 or devices % count):
        raise ConfigError(f"--cpu-devices {devices} cannot be shared out over --processes {count}: must be a multiple")
    command = arguments.line
    if not command or command[0] != "train":
        raise ConfigError(f"launch starts 'train', not '{shlex.join(command)}': launch --processes 2 -- train CONFIG")
    inner = parse(command)
    for name in ("coordinator", "num_processes", "process_id", "cpu_devices"):
        if getattr(inner, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is given by launch; take it out behind 'train'")
    return command, count


def _fewer(count: int) -> int:
    """The largest proper divisor: devices can still be shared out."""
    return max(divisor for divisor in range(1, count) if count % divisor == 0)


def _told(code: int) -> str:
    if code == os.EX_TEMPFAIL:
        return f"code {code}"
    if code <= 128:
        return f"code {code}, which is a fault of the program"
    number = code - 128
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"{name} (killed, or out of memory)" if number == signal.SIGKILL else name


def _sleep(seconds: float, launcher: Launcher) -> None:
    until = time.monotonic() + seconds
    while launcher.asked is None and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _repeat(number: int, source: IO[bytes], target: IO[str]) -> None:
    """Passes lines on, each whole, behind the number of the process that wrote it."""
    with source:
        for line in source:
            text = line.decode(errors="replace").rstrip("\n")
            target.write(f"[{number}] {text}\n")
            target.flush()


def _say(text: str) -> None:
    print(f"pathways-lm: {text}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
    return port
