"""A published checkpoint into a run folder, and a run folder into one."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pathways_lm import __version__
from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import DataConfig, Experiment, MeshConfig, ModelConfig, TrainConfig, to_dict
from pathways_lm.convert.families import FAMILIES, Family
from pathways_lm.convert.plan import Shapes, Tensor, check_expressible, family_of, plan
from pathways_lm.convert.tensors import Reader, write
from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.errors import CheckpointError
from pathways_lm.mesh import abstract_mesh, make_mesh
from pathways_lm.models.inventory import as_json, as_text, num_active_params, num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules

TOKENIZERS = ("spiece.model", "tokenizer.model")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHARD_BYTES = 5_000_000_000


def is_published(folder: Path) -> bool:
    """Whether a folder is one of Hugging Face: its config.json tells a model_type."""
    return "model_type" in _read_json(folder / "config.json")


def import_checkpoint(source: Path, target: Path, pad_vocab: int = 1) -> ModelConfig:
    """Writes a published checkpoint as a run folder at step 0, parameters in fp32.

    Args:
      pad_vocab: rows of the vocabulary are filled up with zeros to a multiple of this.

    Raises:
      CheckpointError: an unknown or broken checkpoint, tensors that are missing, unknown or of another shape (all are
        named at once), or a target that is there already.
    """
    if target.exists():
        raise CheckpointError(f"'{target}' is there already; choose another folder")
    foreign = _read_json(source / "config.json")
    family = FAMILIES.get(foreign.get("model_type", ""))
    if family is None:
        raise CheckpointError(
            f"'{source}/config.json' has model_type={foreign.get('model_type')!r}; known are {', '.join(FAMILIES)}"
        )
    reader = Reader(source)
    try:
        config = family.from_foreign(foreign, reader.names())
    except KeyError as error:
        raise CheckpointError(f"'{source}/config.json' has no {error}") from None
    vocab_rows = config.vocab_size
    config = replace(config, vocab_size=-(-vocab_rows // pad_vocab) * pad_vocab)
    model = Model(config, make_rules("fsdp", abstract_mesh(MeshConfig(data=1))))
    shapes = _shapes(model.abstract)
    tensors = plan(family, config, shapes, vocab_rows)
    _check(source, family, tensors, reader)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    # On disk until the checkpoint is written, for which Orbax holds all of it in memory once more.
    with tempfile.TemporaryDirectory(dir=target.absolute().parent) as scratch:
        arrays: dict[str, np.ndarray] = {
            path: np.memmap(Path(scratch, str(number)), np.float32, "w+", shape=shape)
            for number, (path, shape) in enumerate(shapes.items())
        }
        _fill(arrays, tensors, reader)
        _write_run(target, source, model, arrays)
    return config


def _fill(arrays: dict[str, np.ndarray], tensors: list[Tensor], reader: Reader) -> None:
    for tensor in tensors:
        ours = tensor.layout.to_ours(reader.read(tensor.name), tensor.our_shape)
        for number, part in enumerate(tensor.parts):
            own = ours[number] if len(tensor.parts) > 1 else ours
            own_index = tuple(slice(0, size) for size in own.shape)
            arrays[part.path][part.index][own_index] = own


def _check(source: Path, family: Family, tensors: list[Tensor], reader: Reader) -> None:
    expected = {tensor.name: tensor.shape for tensor in tensors}
    found = reader.names()
    problems = [f"missing: {name} {shape}" for name, shape in sorted(expected.items()) if name not in found]
    layers = {str(number) for number in range(10_000)}
    for name in sorted(found - set(expected)):
        generic = ".".join("{layer}" if piece in layers else piece for piece in name.split("."))
        if name not in family.optional and generic not in family.optional:
            problems.append(f"unknown: {name} {reader.shape(name)}")
    for name, shape in sorted(expected.items()):
        if name in found and reader.shape(name) != shape:
            problems.append(f"wrong shape: {name} is {reader.shape(name)}, not {shape}")
    if problems:
        raise CheckpointError(f"'{source}' does not hold what its config.json says: {'; '.join(problems)}")


def _write_run(target: Path, source: Path, model: Model, arrays: dict[str, np.ndarray]) -> None:
    config = model.config
    vocabulary = _tokenizer(source)
    objective = {"decoder": "causal", "encoder_decoder": "span_corruption", "encoder": "masked"}[config.shape]
    extra = max(config.vocab_size - vocabulary.size, 0) if vocabulary else 0
    experiment = Experiment(
        name=target.name,
        model=config,
        train=TrainConfig(num_steps=1),
        data=DataConfig(
            objective=objective, sequence_length=min(config.max_length or 512, 512), extra_ids=min(extra, 100)
        ),
    )
    folder = RunFolder(target)
    folder.create()
    folder.write_json(folder.config, to_dict(experiment))
    folder.model_info.write_text(as_text(model) + "\n")
    folder.write_json(folder.parameters, as_json(model))
    facts = {"version": __version__, "num_params": num_params(model), "num_active_params": num_active_params(model)}
    folder.write_json(folder.facts, {**facts, "converted_from": source.resolve().name})
    if vocabulary is not None:
        folder.vocabulary.write_bytes(vocabulary.model)
    facts = {"vocabulary_fingerprint": vocabulary.fingerprint if vocabulary else "", "data_fingerprint": ""}
    with closing(Store(target)) as store:
        # As JAX's arrays, which Orbax need not copy before it writes them.
        store.save(0, {"params": jax.device_put(_nested(arrays))}, facts)


def _tokenizer(source: Path) -> Vocabulary | None:
    """The SentencePiece model that comes with a checkpoint, if one does that can be used here."""
    for name in TOKENIZERS:
        if (source / name).is_file():
            try:
                return Vocabulary((source / name).read_bytes())
            except ValueError:
                return None
    return None


def export_checkpoint(run: Path, target: Path, dtype: str = "float32", vocab_rows: int | None = None) -> str:
    """Writes a run's newest checkpoint as a folder that transformers loads. Returns its model_type.

    Args:
      vocab_rows: rows of the vocabulary to write; None writes all.

    Raises:
      CheckpointError: the format cannot say the model, naming fields; or a target that is there already.
    """
    if target.exists():
        raise CheckpointError(f"'{target}' is there already; choose another folder")
    folder = RunFolder(run)
    experiment = folder.experiment()
    config = experiment.model
    family = family_of(config)
    rows = vocab_rows or config.vocab_size
    if not 0 < rows <= config.vocab_size:
        raise CheckpointError(f"--vocab-rows {rows} must be from 1 to the model's {config.vocab_size}")
    foreign = {**family.to_foreign(config), "vocab_size": rows}
    check_expressible(family, config, foreign)
    model = Model(config, make_rules("fsdp", make_mesh(MeshConfig(data=1))))
    # Side by side what is made of the same arrays, so that each is read once and soon let go.
    tensors = sorted(plan(family, config, _shapes(model.abstract), rows), key=_sources)
    abstract = _flat(model.abstract)
    with closing(Store(folder.checkpoints_at(experiment), readonly=True)) as store:
        step = store.newest(lambda step, problem: None)
        if step is None:
            raise CheckpointError(f"run folder '{run}' has no checkpoint yet")

        def read(paths: set[str]) -> dict[str, np.ndarray]:
            return _flat(store.read(step, "params", _nested({path: abstract[path] for path in paths})))

        target.mkdir(parents=True)
        described = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": dtype, **foreign}
        (target / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        if folder.vocabulary.is_file():
            name = "spiece.model" if config.shape == "encoder_decoder" else "tokenizer.model"
            shutil.copyfile(folder.vocabulary, target / name)
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        write(target, shapes, DTYPES[dtype], _foreign_tensors(tensors, read), SHARD_BYTES)
    return family.model_type


def _sources(tensor: Tensor) -> list[str]:
    return [part.path for part in tensor.parts]


def _foreign_tensors(tensors: list[Tensor], read: Callable[[set[str]], dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """Each tensor in turn. Arrays are read when the first tensor needs them, and let go after the last."""
    last = {path: number for number, tensor in enumerate(tensors) for path in _sources(tensor)}
    held: dict[str, np.ndarray] = {}
    for number, tensor in enumerate(tensors):
        needed = set(_sources(tensor))
        if needed - held.keys():
            held |= read(needed - held.keys())
        yield _foreign(tensor, held)
        held = {path: array for path, array in held.items() if last[path] > number}


def _foreign(tensor: Tensor, arrays: dict[str, np.ndarray]) -> np.ndarray:
    single = tensor.our_shape if len(tensor.parts) == 1 else tensor.our_shape[1:]
    cut = tuple(slice(0, size) for size in single)
    parts = [arrays[part.path][part.index][cut] for part in tensor.parts]
    return tensor.layout.to_foreign(parts[0] if len(parts) == 1 else np.stack(parts))


def _shapes(params: Any) -> Shapes:
    return {path: leaf.shape for path, leaf in _flat(params).items()}


def _flat(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = array
    return nested


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"'{path}' is not there")
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from None
