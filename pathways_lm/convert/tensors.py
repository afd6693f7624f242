"""Safetensors files, one tensor at a time.

The format (github.com/huggingface/safetensors): eight bytes with the header's length, the header as JSON, name ->
dtype, shape and offsets, then the numbers. Reading maps the file into memory, writing appends: neither holds more than
a tensor.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pathways_lm.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
INDEX = "model.safetensors.index.json"


class Reader:
    """The tensors of a folder, in one file or in several with an index.

    Raises CheckpointError for a folder without them, and naming a file that is missing, cut short or broken.
    """

    def __init__(self, folder: Path):
        self._where: dict[str, tuple[Path, dict[str, Any], int]] = {}
        for file in _files(folder):
            header, start = _header(file)
            for name, entry in header.items():
                if name != "__metadata__":
                    self._where[name] = (file, entry, start)

    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name][1]["shape"])

    def read(self, name: str) -> np.ndarray:
        """A tensor as a view of its file."""
        file, entry, start = self._where[name]
        dtype = DTYPES[entry["dtype"]]
        return np.memmap(file, dtype, "r", start + entry["data_offsets"][0], tuple(entry["shape"]) or (1,))


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"'{folder / INDEX}' cannot be read: {error}") from None
        files = [folder / name for name in names]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise CheckpointError(f"'{folder / INDEX}' names files that are not there: {', '.join(missing)}")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"'{folder}' holds no .safetensors file")
    return files


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers begin."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if 8 + length > size:
                raise ValueError("its header is cut short")
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        unknown = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} - set(DTYPES)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{file}' is no whole safetensors file: {error}") from None
    if unknown:
        raise CheckpointError(f"'{file}' holds numbers of an unknown type: {', '.join(sorted(unknown))}")
    needed = 8 + length + max(ends, default=0)
    if size < needed:
        raise CheckpointError(f"'{file}' is cut short: {size:,} bytes of {needed:,}")
    return header, 8 + length


def write(
    folder: Path, tensors: dict[str, tuple[int, ...]], dtype: np.dtype, values: Iterator[np.ndarray], shard_bytes: int
) -> None:
    """Writes tensors in the order of `tensors` (name -> shape), as `values` gives them.

    Several files with an index where there are more than `shard_bytes`.
    """
    code = next(name for name, known in DTYPES.items() if known == dtype)
    shards: list[list[str]] = [[]]
    filled = 0
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for name, shape in tensors.items()}
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    whole = len(shards) == 1
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if whole else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in names:
            header[name] = {"dtype": code, "shape": list(tensors[name]), "data_offsets": [at, at + sizes[name]]}
            at += sizes[name]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            for _ in names:
                opened.write(_bytes(next(values), dtype))
    if not whole:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def _bytes(value: np.ndarray, dtype: np.dtype) -> Any:
    return np.ascontiguousarray(value.astype(dtype, copy=False)).reshape(-1).view(np.uint8).data
