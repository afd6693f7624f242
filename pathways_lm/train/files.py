"""Files that grow while a run trains."""

import json
import socket
import struct
import time
from pathlib import Path
from typing import Any


class Appended:
    """A file to append to, without a buffer: what is written survives a kill, and closing it cannot fail."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Raises OSError where the disk is full."""
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        self._file.close()


class Lines(Appended):
    """JSON lines. The piece of a line that a kill or a full disk left at the end is dropped."""

    def __init__(self, path: Path):
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        super().__init__(path)

    def add(self, record: dict[str, Any]) -> None:
        self.write(json.dumps(record).encode() + b"\n")


class Events(Appended):
    """A TensorBoard event file: a chain of TFRecords, each an Event.

    tensorboardX has the messages. Its own writer is not used: it puts them through a queue to a
    thread, and where the disk is full that thread dies and the queue blocks the run for ever.
    """

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        super().__init__(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}")
        self._add(file_version="brain.Event:2")

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Figures by tag."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._add(step=step, summary=Summary(value=values))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text, rendered by TensorBoard as Markdown."""
        from tensorboardX import summary

        self._add(step=step, summary=summary.text(tag, markdown))

    def _add(self, **fields: Any) -> None:
        # Protobuf takes a while to import, and only the process that logs needs it.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self.write(length + checks[0] + data + checks[1])
