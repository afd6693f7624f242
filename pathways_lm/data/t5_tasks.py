"""Tasks of the t5 package (C4, GLUE, SuperGLUE, SQuAD, WMT, CNN/DailyMail …), where their data is on this machine.

Their preprocessors make texts of the data; our vocabulary and objectives go on from there. Nothing is downloaded.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathways_lm.data.examples import TRAIN, VALIDATION, Document, Example, Pair
from pathways_lm.data.quiet_tensorflow import seqio, tf, tfds
from pathways_lm.data.tensorflow_files import builder_in
from pathways_lm.errors import DataError


@functools.cache
def names() -> frozenset[str]:
    """Of the package's tasks and mixtures; none where it is not installed."""
    try:
        import t5.data.mixtures  # noqa: F401  registers them, and the tasks with them
    except ImportError:
        return frozenset()
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    return frozenset(name for name in registered if _sources(name))


def _sources(name: str) -> list[seqio.Task]:
    """The tasks of a name that all are of TensorFlow Datasets, else none."""
    tasks = list(seqio.get_mixture_or_task(name).tasks) if name in seqio.MixtureRegistry.names() else []
    tasks = tasks or [seqio.TaskRegistry.get(name)]
    return tasks if all(isinstance(task.source, seqio.TfdsDataSource) for task in tasks) else []


def read(name: str, datasets_dir: str) -> dict[str, dict[str, list[Example]]]:
    """Task -> split -> documents or pairs. Raises DataError saying where data was looked for and is not."""
    return {task.name: _splits(task, datasets_dir) for task in _sources(name)}


def ready(name: str, datasets_dir: str) -> list[seqio.Task]:
    """The tasks of a name as they are, but reading what lies below `datasets_dir`, where seqio asks the network."""
    return [task.replace(source=_source(task, datasets_dir)) for task in _sources(name)]


def _source(task: seqio.Task, datasets_dir: str) -> seqio.FunctionDataSource:
    builder, splits = _opened(task, datasets_dir)

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed
        return builder.as_dataset(split=splits[split], shuffle_files=False)

    return seqio.FunctionDataSource(dataset, splits=tuple(splits))


def _splits(task: seqio.Task, datasets_dir: str) -> dict[str, list[Example]]:
    builder, splits = _opened(task, datasets_dir)
    if TRAIN not in splits:
        raise DataError(f"task '{task.name}' is for evaluation: it has no split 'train', only {', '.join(splits)}")
    return {
        split: list(_examples(task, builder, split, splits[split])) for split in (TRAIN, VALIDATION) if split in splits
    }


def _opened(task: seqio.Task, datasets_dir: str) -> tuple[tfds.core.DatasetBuilder, dict[str, str]]:
    """What reads a task's data, and the data's own name of each of its splits."""
    loader = task.source.tfds_dataset
    folder = _folder(task.name, loader.name, Path(datasets_dir).expanduser())
    builder = builder_in(folder)
    # seqio's own reading asks the network for what is missing; its map of splits is not public.
    return builder, loader._split_map or {split: split for split in builder.info.splits}


def _folder(task: str, dataset: str, root: Path) -> Path:
    """The folder of a data set such as 'glue/cola:1.0.0'."""
    name, options = tfds.core.naming.parse_builder_name_kwargs(dataset)
    parent = root / name.name / options.get("config", "")
    version = options.get("version", "*")
    found = sorted(path.parent for path in parent.glob(f"{version}/dataset_info.json"))
    if not found:
        where = os.path.join(parent, version)
        raise DataError(
            f"task '{task}' needs the data set {dataset}, which is not at '{where}' (data.datasets_dir); "
            "prepare it there with TensorFlow Datasets"
        )
    return found[-1]


def _examples(task: seqio.Task, builder: tfds.core.DatasetBuilder, split: str, held: str) -> Iterator[Example]:
    dataset = builder.as_dataset(split=held, shuffle_files=False)
    for number, record in enumerate(_as_text(task, dataset).as_numpy_iterator()):
        targets = _text(record["targets"])
        inputs = _text(record.get("inputs", b""))
        name = f"{split} {number}"
        if inputs:
            yield Pair(name, inputs, targets)
        elif targets:
            yield Document(name, targets)


def _as_text(task: seqio.Task, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """What the task's own preprocessors make of a data set, up to where they tokenize."""
    for preprocessor in task.preprocessors:
        if preprocessor is seqio.preprocessors.tokenize:
            break
        wanted = seqio.utils.add_kwargs_to_transform(
            preprocessor, sequence_length=None, output_features=task.output_features
        )
        dataset = wanted(dataset)
    return dataset


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else ""
