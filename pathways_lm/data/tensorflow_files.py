"""Records of TFRecord files of tf.Examples, and of folders of TensorFlow Datasets."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pathways_lm.data.examples import TRAIN, VALIDATION
from pathways_lm.data.quiet_tensorflow import tf, tfds
from pathways_lm.errors import DataError

Records = Iterator[tuple[str, Mapping[str, Any]]]


def tf_records(path: str, keys: list[str]) -> Records:
    """Each tf.Example's place and its values: of `keys` as they are, of others whatever."""
    if path.endswith(".gz"):
        _check_gz(path)
    dataset = tf.data.TFRecordDataset(path, compression_type="GZIP" if path.endswith(".gz") else None)
    number = 0
    try:
        for data in dataset.as_numpy_iterator():
            number += 1
            try:
                features = tf.train.Example.FromString(data).features.feature
            except ValueError as error:  # what protobuf's own error is a kind of
                raise DataError(f"{path}, record {number}: not a tf.Example") from error
            yield f"{path}, record {number}", {key: _value(features[key]) for key in features}
    except tf.errors.OpError as error:
        raise DataError(f"{path}, record {number + 1}: cannot be read: {error.message.splitlines()[0]}") from error


def _check_gz(path: str) -> None:
    """Raises DataError for a damaged file: tensorflow takes one that is cut off for one that ends there."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _value(feature: tf.train.Feature) -> Any:
    """The only value of a feature, or all where there are more."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else values


def tfds_splits(folder: Path) -> dict[str, Records]:
    """The training split and, where there is one, that for validation, of a folder of TensorFlow Datasets."""
    builder = builder_in(folder)
    if TRAIN not in builder.info.splits:
        raise DataError(f"{folder}: has no split 'train'; it has {', '.join(sorted(builder.info.splits))}")
    return {split: _records(builder, split) for split in (TRAIN, VALIDATION) if split in builder.info.splits}


def builder_in(folder: Path) -> tfds.core.DatasetBuilder:
    """What reads a folder, from what lies in it alone: no code of the data set is run, nothing is looked up."""
    try:
        return tfds.builder_from_directory(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read: {str(error).splitlines()[0]}") from error


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    # In order, as the files are: the split of a corpus and its cache go by it.
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=tfds.ReadConfig(try_autocache=False))
    try:
        for number, record in enumerate(tfds.as_numpy(dataset), start=1):
            yield f"{builder.data_dir}, split '{split}', record {number}", record
    except tf.errors.OpError as error:
        raise DataError(f"{builder.data_dir}, split '{split}': cannot be read: {error.message}") from error
