"""Checksums of checkpoints: written before a checkpoint is seen, compared before it is read."""

import hashlib
import json
from collections.abc import Iterator

from etils import epath

from pathways_lm.checkpoint.run_folder import write_atomically


class Seals:
    """The SHA-256 of every file of each checkpoint, in a folder beside them."""

    def __init__(self, folder: epath.Path):
        self.folder = folder

    def write(self, step: int, checkpoint: epath.Path, others: list[int]) -> None:
        """Seals what lies in `checkpoint`, and drops the seals of all but `others`."""
        write_atomically(self._of(step), json.dumps(_digests(checkpoint), indent=1))
        for seal in self.folder.glob("*.json"):
            if int(seal.stem) not in (step, *others):
                seal.unlink(missing_ok=True)

    def problem(self, step: int, checkpoint: epath.Path) -> str | None:
        """What is wrong with a checkpoint, by its seal."""
        seal = self._of(step)
        try:
            expected = dict(json.loads(seal.read_text()))
        except (OSError, ValueError, TypeError):
            return f"its seal '{seal}' is missing or broken"
        found = _digests(checkpoint)
        for name in sorted(expected | found):
            if name not in found:
                return f"file '{name}' is missing"
            if expected.get(name) != found[name]:
                return f"file '{name}' is not what was written"
        return None

    def drop(self, step: int) -> None:
        """Forgets a checkpoint that is gone."""
        self._of(step).unlink(missing_ok=True)

    def _of(self, step: int) -> epath.Path:
        return self.folder / f"{step}.json"


def _digests(checkpoint: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint's items, by relative path; what Orbax notes beside them is left out."""
    digests = {}
    for item in checkpoint.iterdir():
        if item.is_dir():
            for path in _files(item):
                with path.open("rb") as file:
                    digests[str(path.relative_to(checkpoint))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
