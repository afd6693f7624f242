"""A process that trains on CPUs begins with settings for them, unless it was told otherwise."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pathways_lm.cli import cpu, main
from pathways_lm.kernels.mkl import library

CPU = {"JAX_PLATFORMS": "cpu"}


def begun_anew(monkeypatch, environment: dict[str, str], libc: str = "glibc") -> list:
    calls = []
    monkeypatch.setattr(cpu.os, "execve", lambda *given: calls.append(given))
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: (libc, "2.36"))
    cpu.keep_memory(environment)
    return calls


def test_on_cpus_it_begins_anew_with_the_same_command(monkeypatch):
    [(program, command, environment)] = begun_anew(monkeypatch, {**CPU, "HOME": "/h"})
    assert (program, command[1:]) == (sys.executable, sys.orig_argv[1:])
    assert environment == {**CPU, "HOME": "/h", "GLIBC_TUNABLES": cpu.TUNABLES}


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


@pytest.mark.parametrize(
    ("environment", "flags"),
    [
        (CPU, cpu.FUSIONS),
        ({**CPU, "XLA_FLAGS": ""}, ""),
        ({**CPU, "XLA_FLAGS": "--xla_dump_to=here"}, "--xla_dump_to=here"),
        ({"JAX_PLATFORMS": "cuda"}, None),
    ],
)
def test_whose_chains_are_fused(environment, flags):
    environment = dict(environment)
    cpu.fuse_chains(environment)
    assert environment.get("XLA_FLAGS") == flags


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
        "from pathways_lm.cli.cpu import keep_memory\n"
        "keep_memory()\n"
        "print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | CPU
    started = subprocess.Popen(
        [sys.executable, str(program), "a b", "--c"], stdout=subprocess.PIPE, env=environment, text=True
    )
    out = started.communicate(timeout=60)[0]
    settings = cpu.TUNABLES if cpu.platform.libc_ver()[0] == "glibc" else None
    assert out == f"{started.pid} ['a b', '--c'] {settings}\n"


STEPS = """
import json, sys
from pathlib import Path
import jax, numpy as np
from pathways_lm import configure
from pathways_lm.data.objectives import abstract_batch
from pathways_lm.kernels.mkl import library
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import rules_of
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step

changes = ["model.num_layers=2", "model.unroll=2", "model.vocab_size=512"]
changes += ["data.batch_size=4", "data.sequence_length=32"]
random = np.random.default_rng(0)

def draw(leaf):
    values = random.integers(1, 64, leaf.shape) if leaf.dtype == np.int32 else np.ones(leaf.shape)
    return values.astype(leaf.dtype)

if sys.argv[2:]:
    said = library.load(Path(sys.argv[2]))
    assert library._loaded, said
told = {}
for name, *more in json.loads(sys.argv[1]):
    experiment = configure.load(f"configs/{name}.py", [*changes, *more])
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    model = Model(experiment.model, rules_of(experiment.mesh, mesh), POLICIES[experiment.train.precision].stored)
    schedule = make_schedule(experiment.optimizer, experiment.train.num_steps, experiment.tokens_per_step)
    optimizer = make_optimizer(experiment.optimizer, schedule, model)
    batch = jax.tree.map(draw, abstract_batch(experiment.data))
    batch = jax.device_put(batch, model.rules("batch", None))
    step = compile_step(make_step(model, optimizer, schedule, experiment.train), model, optimizer, batch)
    state, found = initial_state(model, optimizer, 0), []
    for _ in range(3):
        state, metrics = step(state, batch)
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    told[name + " ".join(more)] = found
print(json.dumps(told))
"""


QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MODELS = [
    ["palm/tiny", "train.precision=fp32"],
    ["palm/tiny", "train.precision=bf16"],
    ["palm/tiny", "train.precision=fp32", "model.unroll=1", "model.remat=block", "train.microbatches=2"],
    ["megatron/gpt2_tiny", "train.precision=fp32"],
    ["megatron/bert_tiny", "train.precision=fp32"],
    ["t5/v1_1_tiny", "train.precision=fp32"],
    ["switch/tiny", "train.precision=fp32", "model.moe.dispatch=all_to_all"],
    ["switch/tiny", "train.precision=fp32", "model.moe.dispatch=dropless"],
    ["glam/tiny", "train.precision=bf16", "model.moe.dispatch=dropless"],
]


def steps(flags: str, *arguments: str) -> dict[str, list[list[float]]]:
    """Losses and norms of gradients of small models of several kinds, in a process with these flags of XLA."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, json.dumps(MODELS), *arguments],
        env={**os.environ, **CPU, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plain_steps() -> dict[str, list[list[float]]]:
    return steps(QUICK)


def check_same(found: dict[str, list[list[float]]], plain: dict[str, list[list[float]]]) -> None:
    assert len(found) == len(plain) == len(MODELS)
    for name, without in plain.items():
        bound = 1e-2 if "bf16" in name else 1e-4
        np.testing.assert_allclose(found[name], without, rtol=bound, err_msg=name)


def test_steps_are_the_same_with_fused_chains(plain_steps):
    check_same(steps(f"{QUICK} {cpu.FUSIONS}"), plain_steps)


def test_steps_are_the_same_by_mkl(plain_steps, tmp_path):
    if "no MKL" in (said := library.load(tmp_path)):
        pytest.skip(said)
    check_same(steps(f"{QUICK} {cpu.FUSIONS}", str(tmp_path)), plain_steps)
