"""What is known of a run before it trains, for people and for the report."""

import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import flax
import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from pathways_lm import __version__
from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.config import Experiment, to_dict
from pathways_lm.data.cache import Corpus
from pathways_lm.errors import CheckpointError
from pathways_lm.models.inventory import as_json, as_text, num_active_params, num_params
from pathways_lm.models.model import Model


def describe_run(folder: RunFolder, experiment: Experiment, source: Path, model: Model, corpus: Corpus) -> None:
    """Writes everything about the run that does not change while it trains. Raises CheckpointError if it cannot."""
    try:
        _describe(folder, experiment, source, model, corpus)
    except OSError as error:
        raise CheckpointError(f"run folder '{folder.path}' cannot be written: {error.strerror}") from error


def _describe(folder: RunFolder, experiment: Experiment, source: Path, model: Model, corpus: Corpus) -> None:
    mesh = model.rules.mesh
    folder.write_json(folder.config, to_dict(experiment))
    shutil.copyfile(source, folder.path / f"source{source.suffix}")
    folder.vocabulary.write_bytes(corpus.vocabulary.model)
    folder.model_info.write_text(as_text(model) + "\n")
    folder.write_json(folder.parameters, as_json(model))
    folder.write_json(
        folder.facts,
        {
            "version": __version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "device_kind": jax.devices()[0].device_kind,
            "num_devices": mesh.size,
            "num_processes": jax.process_count(),
            "mesh": dict(mesh.shape),
            "num_params": num_params(model),
            "num_active_params": num_active_params(model),
            "vocab_fingerprint": corpus.vocabulary.fingerprint,
            "corpus": {
                "tasks": {
                    task: {split: asdict(counts) for split, counts in splits.items()}
                    for task, splits in corpus.counts.items()
                },
                "validation_bytes": corpus.validation_bytes,
                "yardsticks": dict(corpus.yardsticks),
            },
        },
    )


def mesh_text(mesh: Mesh | AbstractMesh) -> str:
    """The mesh in words, axes of one device left out."""
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    kind = jax.devices()[0].device_kind
    return f"{mesh.size} {kind} devices ({shape})" if mesh.size > 1 else f"1 {kind} device"
