"""A process that trains on CPUs keeps its memory, unless it was told otherwise."""

import os
import subprocess
import sys

import pytest

from pathways_lm.cli import main, memory

CPU = {"JAX_PLATFORMS": "cpu"}


def begun_anew(monkeypatch, environment: dict[str, str], libc: str = "glibc") -> list:
    calls = []
    monkeypatch.setattr(memory.os, "execve", lambda *given: calls.append(given))
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: (libc, "2.36"))
    memory.keep_memory(environment)
    return calls


def test_on_cpus_it_begins_anew_with_the_same_command(monkeypatch):
    [(program, command, environment)] = begun_anew(monkeypatch, {**CPU, "HOME": "/h"})
    assert (program, command[1:]) == (sys.executable, sys.orig_argv[1:])
    assert environment == {**CPU, "HOME": "/h", "GLIBC_TUNABLES": memory.TUNABLES}


@pytest.mark.parametrize(
    "environment",
    [
        {**CPU, "GLIBC_TUNABLES": ""},
        {**CPU, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        {"JAX_PLATFORMS": "cuda"},
        {"JAX_PLATFORMS": "tpu,cpu"},
    ],
)
def test_left_alone(monkeypatch, environment):
    assert not begun_anew(monkeypatch, environment)


def test_other_systems_are_left_alone(monkeypatch):
    assert not begun_anew(monkeypatch, CPU, libc="")


def test_other_commands_and_calls_from_python_are_left_alone(monkeypatch, capsys):
    monkeypatch.setattr("pathways_lm.cli.keep_memory", lambda: pytest.fail("began anew"))
    assert main(["train", "no-such.py"]) == 2
    monkeypatch.setattr(sys, "argv", ["pathways-lm", "report", "no-such-run"])
    assert main() == 2
    assert capsys.readouterr().err


def test_process_and_arguments_stay(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from pathways_lm.cli.memory import keep_memory\n"
        "keep_memory()\n"
        "print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | CPU
    started = subprocess.Popen(
        [sys.executable, str(program), "a b", "--c"], stdout=subprocess.PIPE, env=environment, text=True
    )
    out = started.communicate(timeout=60)[0]
    settings = memory.TUNABLES if memory.platform.libc_ver()[0] == "glibc" else None
    assert out == f"{started.pid} ['a b', '--c'] {settings}\n"
