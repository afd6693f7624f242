"""Where text comes from: documents on every machine that has Python, and the user's own files.

A corpus is a list of documents in an order that depends on names alone, never on the machine.
"""

import glob
import gzip
import hashlib
import itertools
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathways_lm.config import DataConfig
from pathways_lm.errors import ConfigError, DataError, nearest

# Left out of the standard library: tests, what others installed, the documentation (a task of its own) and
# what the build wrote for one machine.
_SKIPPED_PARTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_SKIPPED_PREFIXES = ("_sysconfigdata_", "config-")

# A text file becomes about 50 documents, so that a fiftieth of it can be kept for validation.
_PARTS_PER_TEXT_FILE = 50
_MIN_PART_CHARACTERS, _MAX_PART_CHARACTERS = 4_096, 65_536

# From so many files on, a whole file goes to one side of the split; below, single documents do.
_FILES_TO_SPLIT_BY_FILE = 20


@dataclass(frozen=True)
class Document:
    """One text. `name` is its file; `part` counts the documents within it."""

    name: str
    text: str
    part: int = 0


def python_docs() -> list[Document]:
    """Python's documentation as the `help` command has it, a topic each: 0.5 MB of English."""
    from pydoc_data.topics import topics

    return [Document(name, topics[name]) for name in sorted(topics) if topics[name]]


def python_stdlib() -> list[Document]:
    """The source of the running Python's standard library without its tests, a module each: about 11 MB."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not any(part in _SKIPPED_PARTS or part.startswith(_SKIPPED_PREFIXES) for part in parts):
            names.append("/".join(parts))
    documents = []
    for name in sorted(names):
        try:
            text = (root / name).read_bytes().decode()
        except UnicodeDecodeError:
            continue  # a few modules of older Pythons are in Latin-1
        if text:
            documents.append(Document(name, text))
    return documents


TASKS: Mapping[str, Callable[[], list[Document]]] = {"python_docs": python_docs, "python_stdlib": python_stdlib}
MIXTURES: Mapping[str, tuple[str, ...]] = {"python_text": ("python_docs", "python_stdlib")}
FILES_TASK = "files"


def read(config: DataConfig) -> dict[str, list[Document]]:
    """The documents of each task that `config` asks for.

    Raises ConfigError for an unknown mixture, DataError for files that cannot be read and for tasks without text.
    """
    if config.files:
        return {FILES_TASK: files(config.files, config.text_key)}
    known = {**{name: (name,) for name in TASKS}, **MIXTURES}
    if config.mixture not in known:
        raise ConfigError(f"data.mixture has no task or mixture '{config.mixture}'{nearest(config.mixture, known)}")
    documents = {task: TASKS[task]() for task in known[config.mixture]}
    for task, found in documents.items():
        if not found:
            raise DataError(f"task '{task}': this Python comes without that text; give your own with data.files")
    return documents


def split(documents: list[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, chosen by a hash of their names; both keep their order.

    Whole files go to one side where there are enough of them, else single documents. Adding a file
    moves no other. Raises DataError when there are not two to share out.
    """
    by_file = len({document.name for document in documents}) >= _FILES_TO_SPLIT_BY_FILE

    def key(document: Document) -> str:
        return document.name if by_file else f"{document.name}#{document.part}"

    places = {key(document): _place(key(document)) for document in documents}
    if len(places) < 2:
        raise DataError(f"the corpus is too small: {len(places)} document, and training and validation need one each")
    ranked = sorted(places, key=lambda name: places[name])
    # The lowest is always kept for validation, and the highest never.
    kept = {ranked[0]}.union(name for name in ranked[:-1] if places[name] < fraction)
    train = [document for document in documents if key(document) not in kept]
    validation = [document for document in documents if key(document) in kept]
    return train, validation


def _place(name: str) -> float:
    """A name's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def sampling_rates(train: Mapping[str, Sequence[Document]]) -> dict[str, float]:
    """How often each task is drawn from: in proportion to its bytes, so that all documents are seen equally often."""
    sizes = {task: sum(len(document.text.encode()) for document in documents) for task, documents in train.items()}
    return {task: size / sum(sizes.values()) for task, size in sizes.items()}


def files(pattern: str, text_key: str) -> list[Document]:
    """The documents of the files that match a glob (`~` and `**` are understood, gz is unpacked).

    A JSON-lines file (`.jsonl`, `.jsonl.gz`, `.json.gz`) has one document a line, under `text_key`; any other file
    is text, cut at line ends. Raises DataError naming the file, and the line, that cannot be used.
    """
    pattern = os.path.expanduser(pattern)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise DataError(f"data.files='{pattern}' matches no file")
    # Names start after the pattern's fixed folders: a corpus that is moved keeps its split.
    folders = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1])
    root = os.path.join("", *folders) or os.curdir
    documents = []
    for path in paths:
        texts = _json_lines(path, text_key) if path.endswith((".jsonl", ".jsonl.gz", ".json.gz")) else _text_parts(path)
        name = Path(os.path.relpath(path, root)).as_posix()
        found = [Document(name, text, part) for part, text in enumerate(texts)]
        if not found:
            raise DataError(f"{path}: holds no text")
        documents.extend(found)
    return documents


def _read_bytes(path: str) -> bytes:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}") from error


def _decode(data: bytes, path: str, first_line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8 text ({error.reason}: 0x{data[error.start]:02x})") from error


def _text_parts(path: str) -> Iterator[str]:
    text = _decode(_read_bytes(path), path, first_line=1)
    size = min(max(len(text) // _PARTS_PER_TEXT_FILE, _MIN_PART_CHARACTERS), _MAX_PART_CHARACTERS)
    start = 0
    while start < len(text):
        end = text.find("\n", start + size - 1) + 1 or len(text)
        yield text[start:end]
        start = end


def _json_lines(path: str, text_key: str) -> Iterator[str]:
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(_decode(line, path, first_line=number))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, line {number}: must be a JSON object with key '{text_key}', not {line[:40].decode()!r}"
            )
        if text_key not in record:
            raise DataError(
                f"{path}, line {number}: has no key '{text_key}' (data.text_key){nearest(text_key, record)}"
            )
        text = record[text_key]
        if not isinstance(text, str):
            raise DataError(f"{path}, line {number}: '{text_key}' must be text, not {type(text).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(
                f"{path}, line {number}: '{text_key}' holds half of a surrogate pair, which is not a character"
            )
        if text:
            yield text
