"""Safetensors files, one tensor at a time.

The library reads so. It writes whole files from memory only, so writing is done here: eight bytes with the header's
length, the header as JSON (name -> dtype, shape and offsets), then the numbers of one tensor after the other.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from pathways_lm.errors import CheckpointError

CODES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}
INDEX = "model.safetensors.index.json"


class Reader:
    """The tensors of a folder, in one file or in several with an index.

    Raises CheckpointError for a folder without them, and naming a file that is missing, cut short or broken.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, Any] = {}
        for file in _files(folder):
            try:
                opened = safe_open(file, "numpy")
                self._files.update(dict.fromkeys(opened.keys(), opened))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"'{file}' is no whole safetensors file: {error}") from None

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor, read now."""
        return self._files[name].get_tensor(name)


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


def write(
    folder: Path, tensors: dict[str, tuple[int, ...]], dtype: np.dtype, values: Iterator[np.ndarray], shard_bytes: int
) -> None:
    """Writes tensors in the order of `tensors` (name -> shape), as `values` gives them.

    Several files with an index where there are more than `shard_bytes`.
    """
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
            header[name] = {"dtype": CODES[dtype], "shape": list(tensors[name]), "data_offsets": [at, at + sizes[name]]}
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
