"""The user's files as documents or pairs: a reader for each suffix, and for a data set's folder.

A reader yields records, each with its place ("FILE, line 3") for what may be said of it; `_Keys` takes their text.
"""

import glob
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathways_lm.config import DataConfig
from pathways_lm.data.examples import TRAIN, VALIDATION, Document, Example, Pair
from pathways_lm.errors import DataError, nearest

# A text file becomes about 50 documents, so that a fiftieth of it can be kept for validation.
_PARTS_PER_TEXT_FILE = 50
_MIN_PART_CHARACTERS, _MAX_PART_CHARACTERS = 4_096, 65_536

Records = Iterator[tuple[str, Mapping[str, Any]]]
"""Each record's place and its values by key."""


@dataclass(frozen=True)
class Keys:
    """Which values of a record are its text: that of a document, or inputs and targets. By config field."""

    fields: Mapping[str, str]

    @classmethod
    def of(cls, config: DataConfig) -> "Keys":
        if config.objective == "text_to_text":
            return cls({"data.inputs_key": config.inputs_key, "data.targets_key": config.targets_key})
        return cls({"data.text_key": config.text_key})

    @property
    def names(self) -> list[str]:
        return list(self.fields.values())

    def check(self, place: str, known: Sequence[str]) -> None:
        """Raises DataError for a key that is not known."""
        for field, key in self.fields.items():
            if key not in known:
                raise DataError(f"{place}: has no key '{key}' ({field}){nearest(key, known)}")

    def example(self, place: str, record: Mapping[str, Any], name: str, part: int) -> Example | None:
        """None where it holds no text. Raises DataError for a missing key and for what is no text."""
        self.check(place, list(record))
        texts = [_text(place, key, record[key]) for key in self.names]
        if not all(texts):
            return None
        return Document(name, texts[0], part) if len(texts) == 1 else Pair(name, texts[0], texts[1], part)


def _text(place: str, key: str, value: Any) -> str:
    if isinstance(value, bytes):
        value = _decode(value, f"{place}: '{key}'")
    if not isinstance(value, str):
        raise DataError(f"{place}: '{key}' must be text, not {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{place}: '{key}' holds half of a surrogate pair, which is not a character")
    return value


def read(config: DataConfig) -> dict[str, list[Example]]:
    """'train' and, where the data has that split, 'validation' -> the examples of `data.files`.

    It is a glob (`~` and `**` are understood) or the folder of a data set. What a file is, its suffix tells; what is
    none of the others is text, cut at line ends. Raises DataError naming the file, and the record, that cannot be used.
    """
    pattern, keys = os.path.expanduser(config.files), Keys.of(config)
    if os.path.isdir(pattern):
        return _folder(Path(pattern), keys)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise DataError(f"data.files='{pattern}' matches no file")
    # Names start after the pattern's fixed folders: a corpus that is moved keeps its split.
    folders = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1])
    return {TRAIN: _files(paths, os.path.join("", *folders) or os.curdir, keys)}


def _folder(folder: Path, keys: Keys) -> dict[str, list[Example]]:
    """A folder of TensorFlow Datasets, or one like Hugging Face's: files whose names begin with their split's."""
    if (folder / "dataset_info.json").exists() and (folder / "features.json").exists():
        from pathways_lm.data import tensorflow_files

        given = tensorflow_files.tfds_splits(folder)
        return {split: _examples(records, split, keys) for split, records in given.items()}
    root = folder / "data" if (folder / "data").is_dir() else folder
    splits: dict[str, list[str]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and _reader(path.name)):
        first = path.relative_to(root).parts[0]
        splits.setdefault(_split_of(first), []).append(str(path))
    if TRAIN not in splits:
        held = f"only {', '.join(sorted(name for name in splits if name))}" if any(splits) else "no such files"
        raise DataError(
            f"data.files='{folder}' is a folder without a training split: it holds {held}; "
            "name them train-*.parquet (or jsonl, arrow), or give a glob such as '.../*.txt'"
        )
    return {split: _files(splits[split], str(root), keys) for split in (TRAIN, VALIDATION) if split in splits}


_SPLIT_NAMES = {"train": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "dev": VALIDATION, "test": "test"}


def _split_of(name: str) -> str:
    """A split by how a file's or folder's name begins, '' where that is no split's."""
    return _SPLIT_NAMES.get(re.split(r"[^a-z]", name.lower())[0], "")


def _files(paths: Sequence[str], root: str, keys: Keys) -> list[Example]:
    examples: list[Example] = []
    for path in paths:
        name = Path(os.path.relpath(path, root)).as_posix()
        reader = _reader(path)
        if reader:
            found = _examples(reader(path, keys), name, keys)
        elif len(keys.fields) > 1:
            raise DataError(f"{path}: a text file holds no pairs; use JSON lines, Parquet or TFRecord")
        else:
            found = [Document(name, text, part) for part, text in enumerate(_text_parts(path))]
        if not found:
            raise DataError(f"{path}: holds no text")
        examples.extend(found)
    return examples


def _examples(records: Records, name: str, keys: Keys) -> list[Example]:
    """The examples of one file. Those without text do not count."""
    examples: list[Example] = []
    for place, record in records:
        example = keys.example(place, record, name, len(examples))
        if example:
            examples.append(example)
    return examples


def _reader(path: str) -> Callable[[str, Keys], Records] | None:
    """What reads a file of this name; None for text."""
    return next((reader for pattern, reader in _READERS.items() if re.search(pattern, path)), None)


def _read_bytes(path: str) -> bytes:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}") from error


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text ({error.reason}: 0x{data[error.start]:02x})") from error


def _text_parts(path: str) -> Iterator[str]:
    data = _read_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        text = _decode(data, f"{path}, line {line}")
    size = min(max(len(text) // _PARTS_PER_TEXT_FILE, _MIN_PART_CHARACTERS), _MAX_PART_CHARACTERS)
    start = 0
    while start < len(text):
        end = text.find("\n", start + size - 1) + 1 or len(text)
        yield text[start:end]
        start = end


def _json_lines(path: str, keys: Keys) -> Records:
    for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(_decode(line, place))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(record, dict):
            wanted = " and ".join(f"'{key}'" for key in keys.names)
            raise DataError(f"{place}: must be a JSON object with key {wanted}, not {line[:40].decode()!r}")
        yield place, record


def _parquet(path: str, keys: Keys) -> Records:
    from pathways_lm.data import columns  # late, as all that follow: the libraries take a while

    return columns.parquet(path, keys.names, lambda known: keys.check(path, known))


def _arrow(path: str, keys: Keys) -> Records:
    from pathways_lm.data import columns

    return columns.arrow(path, keys.names, lambda known: keys.check(path, known))


def _tf_records(path: str, keys: Keys) -> Records:
    from pathways_lm.data import tensorflow_files

    return tensorflow_files.tf_records(path, keys.names)


_READERS: Mapping[str, Callable[[str, Keys], Records]] = {
    r"\.(jsonl|jsonl\.gz|json\.gz)$": _json_lines,
    r"\.parquet$": _parquet,
    r"\.arrow$": _arrow,
    r"\.tfrecords?(\.gz|-\d+-of-\d+)?$": _tf_records,
}
