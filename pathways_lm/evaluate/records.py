"""Files that a model is evaluated on: texts, and JSON lines. Every mistake in one names the file and the line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pathways_lm.errors import DataError, nearest


class Record(NamedTuple):
    """A line of a file, as a JSON object."""

    place: str
    """"FILE, line 3", for what may be said of it."""
    values: Mapping[str, Any]

    def __getitem__(self, key: Any) -> Any:
        """A value. Raises DataError for a key that is not there."""
        if key not in self.values:
            raise DataError(f"{self.place}: has no field '{key}'{nearest(str(key), self.values)}")
        return self.values[key]

    def text(self, key: str) -> str:
        """A value that must be text."""
        value = self[key]
        if not isinstance(value, str):
            raise DataError(f"{self.place}: '{key}' must be text, not {type(value).__name__}")
        return encodable(value, f"{self.place}: '{key}'")


def encodable(text: str, place: str) -> str:
    """The text. Raises DataError where it holds what JSON can write and UTF-8 cannot."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{place} holds half of a surrogate pair, which is not a character")
    return text


def text_lines(path: str) -> list[tuple[str, str]]:
    """The place and text of each line that is not blank; line ends are no part of it.

    Raises DataError for a file that cannot be read, holds no text, or is not UTF-8.
    """
    data, lines = _bytes(path), []
    for number, line in enumerate(data.split(b"\n"), start=1):
        place = f"{path}, line {number}"
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: not UTF-8 text ({error.reason}: 0x{line[error.start]:02x})") from error
        if text.strip():
            lines.append((place, text))
    if not lines:
        raise DataError(f"{path}: holds no text")
    return lines


def json_lines(path: str) -> list[Record]:
    """The records of a file. Raises DataError as `text_lines` does, and for a line that is no JSON object."""
    records = []
    for place, line in text_lines(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{place}: must be a JSON object, not {line[:40]!r}")
        records.append(Record(place, values))
    return records


def documents(path: str, key: str = "text") -> list[tuple[str, str]]:
    """The place and text of each document: of a .jsonl file the value of `key` of each line, else the whole file.

    Raises DataError as `json_lines` does, and for a document without text.
    """
    if path.endswith(".jsonl"):
        found = [(record.place, record.text(key)) for record in json_lines(path)]
    else:
        text_lines(path)  # tells the line that is no text
        found = [(path, _bytes(path).decode())]
    for place, text in found:
        if not text:
            raise DataError(f"{place}: holds no text")
    return found


def passages(path: str) -> list[tuple[str, str]]:
    """The same of files that hold a document on each line, as LAMBADA's do."""
    return documents(path) if path.endswith(".jsonl") else text_lines(path)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
