"""Checkpoints on disk: written in the background, sealed by checksums, restored onto any mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from pathways_lm.checkpoint.retention import Keep, Policy
from pathways_lm.checkpoint.seals import Seals
from pathways_lm.errors import CheckpointError

Items = dict[str, Any]
"""Trees of arrays by name, each of which can be restored without the others."""


class Store:
    """The checkpoints of one run, newest last, as many as `keep` says.

    Orbax writes a checkpoint under a temporary name and renames it when it is whole, so one that a
    kill cuts short is never seen. Before the rename a seal is written: the SHA-256 of every file,
    checked before anything is restored.

    They may lie wherever `etils.epath` and tensorstore reach. A bucket has no rename: there Orbax marks what is
    whole by a file of its own.
    """

    def __init__(self, place: epath.PathLike, keep: Keep | None = None, readonly: bool = False):
        """`place` is the run folder, or a folder or URL for this run's checkpoints alone. By default one is kept."""
        keep, self.place = keep or Keep(), epath.Path(place)
        self.folder = self.place / "checkpoints"
        self._seals = Seals(self.place / "seals")
        try:
            if not readonly:
                self._seals.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=Policy(keep),
                    # With one, Orbax notes the figures of each checkpoint. Which is the best the policy says.
                    best_fn=lambda figures: figures[keep.by],
                    read_only=readonly,
                    create=not readonly,
                    cleanup_tmp_directories=not readonly,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._seal,
                        # Failing in the background, it would leave threads that wait for it, and the process with them.
                        create_directories_asynchronously=False,
                    ),
                ),
            )
        except (OSError, ImportError) as error:
            why = getattr(error, "strerror", None) or _first_line(error)
            raise CheckpointError(f"checkpoints cannot be written to '{self.folder}': {why}") from None
        self._saving: int | None = None

    def save(self, step: int, items: Items, facts: dict[str, Any], figures: Mapping[str, Any] | None = None) -> None:
        """Starts writing; returns when the arrays may be changed. Does nothing if `step` is there already.

        Args:
          figures: of these very parameters on the validation text, where they are known. Single numbers are kept.

        Raises CheckpointError for this checkpoint or the one before, where that could not be written.
        """
        self.wait()
        if step in self.steps():
            return
        self._saving = step
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(**saved, facts=ocp.args.JsonSave(facts))
        told = None
        if figures is not None:
            told = {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}
        self._guard(lambda: self._manager.save(step, args=args, metrics=told))

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises CheckpointError if that failed."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        # The manager's own list has those whose writing failed, too.
        return sorted(ocp.utils.checkpoint_steps(self.folder)) if self.folder.is_dir() else []

    def restore(
        self,
        abstract: Items,
        notice: Callable[[int, str], None],
        writable: bool = False,
        at_most: int | None = None,
    ) -> tuple[int, Items, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its step and facts; None where there is none at all.

        Args:
          abstract: shapes, types and shardings of the items wanted; the mesh may differ from the one that saved.
          notice: told of each damaged checkpoint, its step and what is wrong.
          writable: move damaged checkpoints out of the way, so that training can write them again.
          at_most: the newest step that is wanted; without, any.

        Raises:
          CheckpointError: there are checkpoints, and all are damaged.
        """
        step = self.newest(notice, writable, at_most)
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

    def restore_part(self, step: int, item: str, part: Any) -> Any:
        """Some arrays of an item, where `part` says they lie and in the types it says.

        Args:
          step: as `newest` gives it.
          part: the item's tree with only those arrays, which must be there in these shapes: their types and shardings.
        """
        how = ocp.checkpoint_utils.construct_restore_args(part)
        args = ocp.args.PyTreeRestore(item=part, restore_args=how, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore((self.folder / str(step) / item).absolute(), args=args)

    def shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        """The shapes of an item's arrays by their paths, between slashes."""
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata((self.folder / str(step) / item).absolute()).item_metadata.tree
        leaves = jax.tree.leaves_with_path(tree)
        return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}

    def facts(self, step: int) -> dict[str, Any]:
        """What was kept beside the arrays of a whole checkpoint."""
        found: dict[str, Any] = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
        return found

    def newest(
        self, notice: Callable[[int, str], None], writable: bool = False, at_most: int | None = None
    ) -> int | None:
        """The newest checkpoint that is whole. Arguments and errors are those of `restore`."""
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        for step in reversed(steps):
            problem = self._seals.problem(step, self.folder / str(step))
            if problem is None:
                return step
            notice(step, f"checkpoint '{self.folder / str(step)}' is damaged: {problem}")
            if writable:
                self._move([step], "damaged")
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

    def withdraw(self, after: int) -> None:
        """Moves the checkpoints of later steps to the folder `withdrawn`, so that these steps can be done anew.

        Every process must call it.
        """
        self.wait()
        self._move([step for step in self.steps() if step > after], "withdrawn")

    def _seal(self) -> None:
        """Seals the checkpoint that is being saved, and drops the seals of those that are gone.

        Orbax calls it in the first process when the items lie whole in a temporary folder, just before it
        is renamed or marked as whole: no checkpoint is seen before its seal.
        """
        assert self._saving is not None
        begun = next(self.folder.glob(f"{self._saving}.*"), self.folder / str(self._saving))
        self._seals.write(self._saving, begun, self.steps())

    def _move(self, steps: list[int], where: str) -> None:
        """Moves checkpoints out of the way; none is overwritten there."""
        # Not while another process is still reading them.
        _together(f"checkpoints {steps} to be {where}")
        if steps and jax.process_index() == 0:
            folder = self.place / where
            folder.mkdir(exist_ok=True)
            for step in steps:
                attempt = 0
                while (target := folder / f"{step}-{attempt}").exists():
                    attempt += 1
                (self.folder / str(step)).rename(target)
                self._seals.drop(step)
        _together(f"checkpoints {steps} {where}")
        self._manager.reload()


def _together(event: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    # The reason stands at the end, behind the names of files.
    return line if len(line) <= 300 else f"{line[:140]} … {line[-140:]}"
