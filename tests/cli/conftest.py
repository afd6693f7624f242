"""A run that takes a second to train, from a command line of its own or within the test process."""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pathways_lm.cli import main

CONFIG = """
from pathways_lm.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, SampleConfig, TrainConfig


def experiment() -> Experiment:
    return Experiment(
        name="micro",
        model=ModelConfig(num_layers=2, embed_dim=16, num_heads=8, head_dim=4, mlp_dim=32, vocab_size=512),
        data=DataConfig(files={files!r}, sequence_length=32, batch_size=8, cache_dir={cache!r}),
        optimizer=OptimizerConfig(hold_steps=10),
        train=TrainConfig(num_steps=60, log_every=1, eval_every=20, checkpoint_every=10, checkpoints_kept=2),
        sample=SampleConfig(num_tokens=4),
    )
"""
# What is said on the error stream when nothing is wrong: building a corpus takes its time.
PROGRESS = ("learning a vocabulary", "tokenizing", "waiting for")
# Far more than a run takes: only there so that a hang is a failure.
PATIENCE = 300


@dataclass(frozen=True)
class Micro:
    """A config file, and ways to call the command line with it."""

    config: Path
    corpus: Path
    cache: Path

    def train(self, run: Path, *settings: str) -> list[str]:
        """Arguments that train in `run`; settings are `section.field=value`."""
        return ["train", str(self.config), "--run", str(run), *(f"--set={setting}" for setting in settings)]

    @staticmethod
    def main(*arguments: str) -> int:
        """The command line within the test process, on the first of its devices."""
        command, *rest = arguments
        return main([command, *(["--set=mesh.data=1"] if command == "train" else []), *rest])

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """A process with one virtual device unless told otherwise."""
        command = [sys.executable, "-m", "pathways_lm", *arguments]
        if arguments[0] in ("train", "generate", "evaluate") and "--cpu-devices" not in arguments:
            command += ["--cpu-devices", "1"]
        # Small programs are kept in the cache of compiled programs as well: each start is seconds shorter.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A suite that runs in the background of a shell ignores Ctrl-C, and its children would inherit that.
        heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        return subprocess.Popen(command, env=environment, **{**pipes, **heeds, **options})

    def call(self, *arguments: str, largest_file_bytes: int = -1) -> subprocess.CompletedProcess:
        """The same, when it has ended. Writing beyond the size given fails, as on a full disk."""
        with self.start(*arguments) as process:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
            try:
                out, err = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @staticmethod
    def rows(run: Path) -> list[dict]:
        """The lines of metrics.jsonl, each of which must be whole."""
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def losses(self, run: Path) -> dict[int, float]:
        """Training loss by step, as it was logged last."""
        return {row["step"]: row["loss"] for row in self.rows(run) if row["kind"] == "train"}

    @staticmethod
    def steps(run: Path) -> list[int]:
        """The finished checkpoints."""
        folder = run / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []

    @staticmethod
    def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
        """Every array in a checkpoint, by item and path: parameters, optimizer, step, key and what else there is."""
        found = {}
        for metadata in sorted((run.absolute() / "checkpoints" / str(step)).glob("*/_METADATA")):
            item = metadata.parent
            with ocp.PyTreeCheckpointer() as checkpointer:
                # As numpy's: this process need not have the devices of those that wrote them.
                tree = checkpointer.metadata(item).item_metadata.tree
                how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                tree = checkpointer.restore(item, args=ocp.args.PyTreeRestore(restore_args=how))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[f"{item.name}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
        return found

    def assert_same_bits(self, run: Path, other: Path, step: int = 60) -> None:
        """Both runs have the same checkpoint."""
        actual, expected = self.arrays(run, step), self.arrays(other, step)
        assert actual.keys() == expected.keys()
        assert {name: array.dtype for name, array in actual.items()} == {n: a.dtype for n, a in expected.items()}
        assert [name for name in expected if actual[name].tobytes() != expected[name].tobytes()] == []


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder for all test processes of this call."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def alone(shared: Path) -> Iterator[None]:
    """Keeps the other test processes out."""
    with (shared / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def micro(shared) -> Micro:
    """A model of 14,000 parameters on 24 pages of Python's documentation, packed once for all tests."""
    corpus, config, cache = shared / "corpus", shared / "micro.py", shared / "cache"
    with alone(shared):
        if not config.is_file():
            corpus.mkdir()
            for name in sorted(topics)[:24]:
                (corpus / f"{name}.txt").write_text(topics[name][:3000])
            config.write_text(CONFIG.format(files=f"{corpus}/*.txt", cache=str(cache)))
    return Micro(config, corpus, cache)


@pytest.fixture(scope="session")
def undisturbed(micro, shared) -> Path:
    """The run folder of 60 steps on one device, without interruption."""
    run = shared / "undisturbed"
    with alone(shared):
        if not run.is_dir():
            done = micro.call(*micro.train(run))
            assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def trained(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed run, to be damaged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


@pytest.fixture
def refused(capfd) -> Callable[..., str]:
    """Calls the command line within the test process, expects exit code 2, and returns what it says: one line."""

    def call(*arguments: str, lines: int = 1) -> str:
        capfd.readouterr()
        assert Micro.main(*arguments) == 2
        said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(PROGRESS)]
        assert len(said) == lines
        assert said[-1].startswith("pathways-lm: ")
        return "\n".join(said)

    return call


@pytest.fixture
def no_compile(monkeypatch) -> None:
    """Drawing parameters and compiling a step fail the test."""
    compiling = (
        "pathways_lm.cli.train.compile_step",
        "pathways_lm.models.model.Model.initialise",
        "pathways_lm.decode.generate.Generator.fill",
    )
    for target in compiling:
        monkeypatch.setattr(target, lambda *args, **kwargs: pytest.fail("began to compile"))
