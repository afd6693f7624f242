"""The folder of one run: what lies in it, who may write to it, and whether it fits an experiment."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from etils import epath

from pathways_lm.config import DataConfig, Experiment, from_dict, to_dict
from pathways_lm.errors import CheckpointError, ConfigError

# What must stay as it was when a run goes on: it decides what the parameters or the batches are, or where they lie.
FIXED_SECTIONS = frozenset({"model", "data"})
# Where it began decides its vocabulary.
# What of an optimizer decides the form of its state, is of it, too: where beta1 is 0 Adafactor keeps no momentum.
FIXED_FIELDS = frozenset(
    {"optimizer.name", "optimizer.factored", "optimizer.factored_from", "optimizer.moments", "optimizer.beta1"}
    | {"train.checkpoint_dir", "train.init_from", "train.init_step", "train.init_parameters"}
)
FREE_FIELDS = frozenset({"model.remat", "model.unroll", "data.cache_dir", "data.cache"})


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


class RunFolder:
    """Paths in a run folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.facts = self.path / "run.json"
        self.vocabulary = self.path / "vocabulary.model"
        self.model_info = self.path / "model_info.txt"
        self.parameters = self.path / "parameters.json"
        self.metrics = self.path / "metrics.jsonl"
        self.rewinds = self.path / "rewinds.json"
        self.samples = self.path / "samples.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"

    def experiment(self) -> Experiment:
        """The experiment that made the run. Raises CheckpointError where this is no run folder."""
        if not self.config.is_file():
            raise CheckpointError(f"'{self.path}' is not a run folder: it has no config.json")
        try:
            return from_dict(json.loads(self.config.read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"'{self.config}' cannot be read: {error}") from None

    def changes(self, experiment: Experiment) -> list[str]:
        """What `experiment` sets differently from the run, as `field: old -> new`; empty for a new folder.

        Raises CheckpointError for a field that would make it another model or other data.
        """
        if not self.config.is_file():
            return []
        old, new = _flat(to_dict(self.experiment())), _flat(to_dict(experiment))
        changed = [name for name in new if old[name] != new[name]]
        for name in changed:
            if _fixed(name):
                raise CheckpointError(
                    f"run folder '{self.path}' was made with {name}={old[name]!r}, not {new[name]!r}; "
                    "use the same value or another folder"
                )
        return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in changed]

    def checkpoints_at(self, experiment: Experiment) -> epath.Path:
        """Where a run's checkpoints and their seals lie: in the folder itself unless the experiment names a place."""
        return epath.Path(experiment.train.checkpoint_dir or self.path)

    def has_checkpoint(self, experiment: Experiment) -> bool:
        """Whether a run has begun so far that it goes on from its own parameters."""
        folder = self.checkpoints_at(experiment) / "checkpoints"
        return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())

    def create(self) -> None:
        """Makes the folder. Raises CheckpointError where that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"run folder '{self.path}' cannot be made: {error.strerror}") from None

    def lock(self) -> IO[str]:
        """Takes the folder for this process until the returned file is closed, or the process ends, however it ends.

        Raises CheckpointError where another process has it.
        """
        try:
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise CheckpointError(f"run folder '{self.path}' cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise CheckpointError(f"run folder '{self.path}' is being trained by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        return file

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Tells a failed write, of a full disk for one, as a CheckpointError."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"run folder '{self.path}' cannot be written: {error.strerror or error}") from error

    def write_json(self, path: Path, value: Any) -> None:
        """Writes one of the folder's JSON files."""
        write_atomically(epath.Path(path), json.dumps(value, indent=1) + "\n")


def reading(experiment: Experiment, own: RunFolder | None = None) -> DataConfig:
    """What an experiment reads. The vocabulary of one that begins from another run is that run's.

    Args:
      own: the run's folder. Once it has the vocabulary, the run it began from need not be there any more.
    """
    data, begun = experiment.data, experiment.train.init_from
    if data.vocabulary or not begun:
        return data
    folders = [*([own] if own else []), RunFolder(Path(begun).expanduser())]
    there = next((folder.vocabulary for folder in folders if folder.vocabulary.is_file()), "")
    return replace(data, vocabulary=str(there))


def _fixed(name: str) -> bool:
    return name in FIXED_FIELDS or (name.partition(".")[0] in FIXED_SECTIONS and name not in FREE_FIELDS)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
