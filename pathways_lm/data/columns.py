"""Records of Parquet and Arrow files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pathways_lm.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]
Check = Callable[[Sequence[str]], None]
"""Is given the names of all columns, and raises where one that is needed is missing."""


def parquet(path: str, columns: list[str], check: Check) -> Rows:
    """Each row's place and its `columns`; no others are read."""
    try:
        with pq.ParquetFile(path) as file:
            check(file.schema_arrow.names)
            yield from _rows(path, file.iter_batches(columns=columns))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def arrow(path: str, columns: list[str], check: Check) -> Rows:
    """The same of Arrow's stream form, in which Hugging Face's datasets are kept, or of its file form."""
    try:
        with pa.OSFile(path, "rb") as file:
            stream = file.read(6) != b"ARROW1"
            file.seek(0)
            reader = pa.ipc.open_stream(file) if stream else pa.ipc.open_file(file)
            check(reader.schema.names)
            batches = reader if stream else map(reader.get_batch, range(reader.num_record_batches))
            yield from _rows(path, (batch.select(columns) for batch in batches))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _rows(path: str, batches: Iterable[pa.RecordBatch]) -> Rows:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", record


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}")
