"""Checkpoints on disk: written in the background, sealed by checksums, restored onto any mesh."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pathways_lm.checkpoint.run_folder import write_atomically
from pathways_lm.errors import CheckpointError

Items = dict[str, Any]
"""Trees of arrays by name, each of which can be restored without the others."""


class Store:
    """The checkpoints of one run, newest last, `kept` of them.

    Orbax writes a checkpoint under a temporary name and renames it when it is whole, so one that a
    kill cuts short is never seen. Before the rename a seal is written: the SHA-256 of every file,
    checked before anything is restored.
    """

    def __init__(self, run: Path, kept: int = 1, readonly: bool = False):
        self.folder = run / "checkpoints"
        self.seals = run / "seals"
        self.set_aside = run / "damaged"
        try:
            if not readonly:
                self.seals.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=kept,
                    read_only=readonly,
                    create=not readonly,
                    cleanup_tmp_directories=not readonly,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                ),
            )
        except OSError as error:
            raise CheckpointError(f"checkpoints cannot be written to '{self.folder}': {error.strerror}") from None
        self._saving: int | None = None

    def save(self, step: int, items: Items, facts: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays may be changed. Does nothing if `step` is there already.

        Raises CheckpointError for this checkpoint or the one before, where that could not be written.
        """
        self.wait()
        if step in self.steps():
            return
        self._saving = step
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(**saved, facts=ocp.args.JsonSave(facts))
        self._guard(lambda: self._manager.save(step, args=args))

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises CheckpointError if that failed."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        self.wait()
        for later in self.steps():
            if later > step:
                self._manager.delete(later)
        self._manager.reload()

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        # Orbax's own list has those whose writing failed, too.
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def restore(
        self, abstract: Items, notice: Callable[[int, str], None], writable: bool = False
    ) -> tuple[int, Items, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its step and facts; None where there is none at all.

        Args:
          abstract: shapes, types and shardings of the items wanted; the mesh may differ from the one that saved.
          notice: told of each damaged checkpoint, its step and what is wrong.
          writable: move damaged checkpoints out of the way, so that training can write them again.

        Raises:
          CheckpointError: there are checkpoints, and all are damaged.
        """
        step = self.newest(notice, writable)
        if step is None:
            return None
        # What fails now is not the files' fault.
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        args = ocp.args.Composite(**wanted, facts=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return step, {name: restored[name] for name in wanted}, restored.facts

    def read(self, step: int, item: str, part: Any) -> Any:
        """Some arrays of an item as numpy's, without reading the others.

        Args:
          step: as `newest` gives it.
          part: the item's tree with only those arrays, their shapes and types.

        Raises:
          CheckpointError: the checkpoint has no such array, or one of another shape.
        """
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part)
        args = ocp.args.PyTreeRestore(item=part, restore_args=how, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.restore((self.folder / str(step) / item).absolute(), args=args)
        for (path, wanted), leaf in zip(jax.tree.leaves_with_path(part), jax.tree.leaves(found), strict=True):
            # Where there is none, what was asked for comes back.
            if not isinstance(leaf, np.ndarray) or leaf.shape != wanted.shape:
                name = "/".join(str(key.key) for key in path)
                has = f"it as {leaf.shape}" if isinstance(leaf, np.ndarray) else "none"
                raise CheckpointError(f"'{self.folder / str(step)}' should hold {name} {wanted.shape} and has {has}")
        return found

    def newest(self, notice: Callable[[int, str], None], writable: bool = False) -> int | None:
        """The newest checkpoint that is whole. Arguments and errors are those of `restore`."""
        steps = self.steps()
        for step in reversed(steps):
            problem = self._check_seal(step)
            if problem is None:
                return step
            notice(step, f"checkpoint '{self.folder / str(step)}' is damaged: {problem}")
            if writable:
                self._put_aside(step)
        if steps:
            raise CheckpointError(f"all checkpoints in '{self.folder}' are damaged: steps {', '.join(map(str, steps))}")
        return None

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # Orbax and tensorstore raise many kinds for a failed write.
            good = self.steps()
            last = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
            raise CheckpointError(
                f"checkpoint {self._saving} could not be written to '{self.folder}': {_first_line(error)}; {last}"
            ) from error

    def _seal(self) -> None:
        """Seals the checkpoint that is being saved, and drops the seals of those that are gone.

        Orbax calls it in the first process when the items lie whole in a temporary folder, just before it
        is renamed: no checkpoint is seen before its seal.
        """
        begun = next(self.folder.glob(f"{self._saving}.*"))
        write_atomically(self.seals / f"{self._saving}.json", json.dumps(_digests(begun), indent=1))
        for seal in self.seals.glob("*.json"):
            if int(seal.stem) not in (self._saving, *self.steps()):
                seal.unlink()

    def _check_seal(self, step: int) -> str | None:
        """What is wrong with a checkpoint, by its seal."""
        seal = self.seals / f"{step}.json"
        try:
            expected = dict(json.loads(seal.read_text()))
        except (OSError, ValueError, TypeError):
            return f"its seal '{seal}' is missing or broken"
        found = _digests(self.folder / str(step))
        for name in sorted(expected | found):
            if name not in found:
                return f"file '{name}' is missing"
            if expected.get(name) != found[name]:
                return f"file '{name}' is not what was written"
        return None

    def _put_aside(self, step: int) -> None:
        # Not while another process is still reading it.
        _together(f"damaged checkpoint {step} found")
        if jax.process_index() == 0:
            self.set_aside.mkdir(exist_ok=True)
            attempt = 0
            while (target := self.set_aside / f"{step}-{attempt}").exists():
                attempt += 1
            (self.folder / str(step)).rename(target)
            (self.seals / f"{step}.json").unlink(missing_ok=True)
        _together(f"damaged checkpoint {step} set aside")
        self._manager.reload()


def _together(event: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint's items, by relative path; what Orbax notes beside them is left out."""
    digests = {}
    for path in sorted(checkpoint.glob("*/**/*")):
        if path.is_file():
            with path.open("rb") as file:
                digests[str(path.relative_to(checkpoint))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    # The reason stands at the end, behind the names of files.
    return line if len(line) <= 300 else f"{line[:140]} … {line[-140:]}"
