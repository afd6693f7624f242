"""What lies in the folder of a packed corpus, and whether it is still what was written.

manifest.json                               what was asked for, and each file's SHA-256
vocabulary.model                            the SentencePiece vocabulary
<task>-<split>-00003-of-00008.array_record  a sequence a record: little-endian int32 [sequence_length]

`build` writes the manifest last: a folder without one is not finished.
"""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathways_lm.errors import DataError

MANIFEST, VOCABULARY, JOURNAL = "manifest.json", "vocabulary.model", "journal.jsonl"
_BEGUN = ".begun-"


@dataclass(frozen=True)
class Counts:
    """How much is in a shard, or a split. `tokens` includes each document's end-of-document token."""

    documents: int
    bytes: int
    tokens: int
    sequences: int


@dataclass(frozen=True)
class Shard:
    """One finished file. `made_from` is a hash of its documents and of everything that turns them into rows."""

    file: str
    made_from: str
    sha256: str
    file_bytes: int
    counts: Counts


@dataclass(frozen=True)
class Manifest:
    """A finished cache. `fingerprint` is a hash of what its shards were made from."""

    fingerprint: str
    asked: Mapping[str, Any]
    """What of the configuration decides the rows, by its name."""
    sequence_length: int
    vocabulary_sha256: str
    versions: Mapping[str, str]
    rates: Mapping[str, float]
    yardsticks: Mapping[str, float]
    shards: Mapping[str, Mapping[str, tuple[Shard, ...]]]
    """Task -> split -> shards in order."""


def shard_name(task: str, split: str, number: int, count: int) -> str:
    return f"{task}-{split}-{number:05}-of-{count:05}.array_record"


def total(shards: Iterable[Shard]) -> Counts:
    """The counts of several shards together."""
    columns = zip(*(dataclasses.astuple(shard.counts) for shard in shards), strict=True)
    return Counts(*map(sum, columns))


def all_shards(manifest: Manifest) -> Iterator[Shard]:
    for splits in manifest.shards.values():
        for shards in splits.values():
            yield from shards


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`, None where there is none. Raises DataError where it cannot be read."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text())
        shards = {
            task: {split: tuple(as_shard(shard) for shard in shards) for split, shards in splits.items()}
            for task, splits in values["shards"].items()
        }
        return Manifest(**{**values, "shards": shards})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is damaged") from error


def as_shard(values: Mapping[str, Any]) -> Shard:
    """The inverse of `dataclasses.asdict`."""
    return Shard(**{**values, "counts": Counts(**values["counts"])})


def difference(written: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first setting of `asked` that was another when the cache was written, as `x=1, not 2`."""
    for name in {**asked, **written}:
        if name not in written or name not in asked or written[name] != asked[name]:
            return f"{name}={written.get(name)!r}, not {asked.get(name)!r}"
    return None


def is_there(folder: Path, manifest: Manifest) -> bool:
    """Whether each file is there and as long as it should be, which takes no reading."""
    try:
        return (folder / VOCABULARY).is_file() and all(
            (folder / shard.file).stat().st_size == shard.file_bytes for shard in all_shards(manifest)
        )
    except OSError:
        return False


def damage(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, read whole; None where nothing is."""
    try:
        found = sha256(folder / shard.file)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == shard.sha256 else "is damaged: it is not what was written (SHA-256)"


def check(folder: Path, report: Callable[[Shard], None]) -> Manifest:
    """Reads every file of a cache. `report` is called after each shard.

    Raises DataError naming the damaged files, or saying that the folder holds no finished cache.
    """
    manifest = finished(folder, f"'{folder}'")
    damaged = []
    try:
        if sha256(folder / VOCABULARY) != manifest.vocabulary_sha256:
            damaged.append(f"'{folder / VOCABULARY}' is damaged: it is not what was written (SHA-256)")
    except OSError as error:
        damaged.append(f"'{folder / VOCABULARY}' cannot be read: {error.strerror}")
    for shard in all_shards(manifest):
        problem = damage(folder, shard)
        if problem:
            damaged.append(f"'{folder / shard.file}' {problem}")
        report(shard)
    if damaged:
        raise DataError("; ".join(damaged) + "; the command that wrote the cache mends it")
    return manifest


def finished(folder: Path, called: str) -> Manifest:
    """The manifest in `folder`, which the user named as `called`. Raises DataError where there is no finished cache."""
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest
    if (folder / JOURNAL).is_file():
        raise DataError(f"{called} is not finished; the command that began it goes on with it")
    raise DataError(f"{called} holds no cache: it has no {MANIFEST}; 'pathways-lm data cache' writes one")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    begun = begun_name(path.parent)
    try:
        begun.write_bytes(content)
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)


def begun_name(folder: Path) -> Path:
    """A name in `folder` that nobody else uses, to be written and then renamed to what it becomes."""
    return folder / f"{_BEGUN}{uuid.uuid4().hex}"


def clear_begun(folder: Path) -> None:
    """Removes what killed writers left half-written."""
    for path in folder.glob(f"{_BEGUN}*"):
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
