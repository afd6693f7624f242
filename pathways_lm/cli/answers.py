"""A file of prompts, and the file of their answers: written one by one, and never twice."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from pathways_lm.errors import DataError


def read_prompts(path: str, key: str) -> list[str]:
    """The prompts of a JSON-lines file, or of a text file with one a line.

    Raises:
      DataError: the file cannot be read, or a line is no JSON object with `key`, or no UTF-8; it names the line.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from None
    if not lines:
        raise DataError(f"'{path}' has no lines")
    return [_prompt(path, number, line, key) for number, line in enumerate(lines, start=1)]


def _prompt(path: str, number: int, line: bytes, key: str) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise DataError(f"'{path}' line {number} is not UTF-8") from None
    if not path.endswith((".jsonl", ".json")):
        return text
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        raise DataError(f"'{path}' line {number} is not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise DataError(f"'{path}' line {number} has no text under {key!r}")
    return record[key]


class Answers:
    """Answers as JSON lines, in the order in which they are done, beside a file of the settings they are made with.

    A job that was killed goes on with what is missing: whole lines stay, a line that was cut off is written again.

    Raises:
      DataError: the file is of other prompts or settings, or another process is writing it.
    """

    def __init__(self, path: str, prompts: Sequence[str], settings: dict[str, Any]):
        self.path, self.prompts = Path(path), prompts
        self.done: set[int] = set()
        self._file = self._open()
        try:
            self._go_on({**settings, "prompts": len(prompts)})
        except DataError:
            self._file.close()
            raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def _go_on(self, settings: dict[str, Any]) -> None:
        """Finds what is there already."""
        self._check_settings(settings)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self.done.add(self._number(line, len(self.done) + 1))
            whole += len(line)
        self._file.seek(whole)
        self._file.truncate()

    def write(self, number: int, answer: dict[str, Any]) -> None:
        """Adds the answer to a prompt; when this returns, it is on the disk."""
        line = {"number": number, "prompt": self.prompts[number], **answer}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(number)

    def _open(self) -> IO[bytes]:
        try:
            file = self.path.open("a+b")
        except OSError as error:
            raise DataError(f"'{self.path}' cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise DataError(f"'{self.path}' is being written by another process") from None
        file.seek(0)
        return file

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.path.with_name(f"{self.path.name}.settings.json")
        if not path.is_file():
            if self.path.stat().st_size:
                raise DataError(f"'{self.path}' is there and was not written by this command; choose another file")
            path.write_text(json.dumps(settings, indent=1) + "\n")
            return
        try:
            old = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise DataError(f"'{path}' is damaged; remove it and '{self.path}' to begin anew") from None
        for name, value in settings.items():
            if old.get(name) != value:
                raise DataError(
                    f"'{self.path}' was begun with {name}={old.get(name)!r}, not {value!r}; choose another file"
                )

    def _number(self, line: bytes, at: int) -> int:
        """Which prompt a line answers."""
        try:
            record = json.loads(line)
            number, prompt = record["number"], record["prompt"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise DataError(f"'{self.path}' line {at} is damaged; remove the line to have it answered again") from None
        if not 0 <= number < len(self.prompts) or self.prompts[number] != prompt:
            raise DataError(f"'{self.path}' line {at} answers another prompt than number {number} is now")
        if number in self.done:
            raise DataError(f"'{self.path}' line {at} answers prompt {number} a second time")
        return number
