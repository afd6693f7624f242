"""Eight virtual CPU devices for every test, and a model small enough to compile in seconds."""

import contextlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# Nearly all the time of the suite is compiling. Without LLVM's expensive passes that takes half as long, and with
# fusions written by LLVM and not by MLIR less than half of that, which JAX 0.12 has no flag for. What the programs
# compute is the same but for the rounding of fused operations. The third is that of pathways_lm/compiler.py, for what
# tests compile themselves. Before JAX is imported, and for subprocesses; whoever sets XLA_FLAGS chooses.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

# Of other implementations, where they are installed (make peers): loaded after TensorFlow it ends the process.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import hypothesis
import jax
import numpy as np
import pytest

from pathways_lm.config import MeshConfig, ModelConfig
from pathways_lm.kernels.mkl import library

# Before any backend starts. Tests are about the CPU's numbers, also on a machine with an accelerator.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The same examples on every machine, and no deadline: the first example of a test may compile something.
hypothesis.settings.register_profile("same_everywhere", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("same_everywhere")

# Every dimension differs, and a mesh of eight divides those that it cuts: a swapped pair shows.
TINY = {"num_layers": 3, "embed_dim": 32, "num_heads": 8, "head_dim": 6, "mlp_dim": 48, "vocab_size": 264}


@pytest.fixture(autouse=True)
def _multiplied_by_xla(monkeypatch):
    """A test that loads MKL, as training does, loads it for itself."""
    monkeypatch.setattr(library, "_loaded", [])


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ModelConfig]:
    """`tiny(num_layers=2)` is the small model with another number of layers."""
    return lambda **changes: ModelConfig(**{**TINY, **changes})


@pytest.fixture(scope="session")
def make(tiny: Callable[..., ModelConfig]) -> Callable:
    """`make(preset, data, tensor, expert, zero, context, ring, dtype, **changes)` is the small `Model` on a mesh of
    that many devices."""
    from pathways_lm.mesh import make_mesh
    from pathways_lm.models.model import Model
    from pathways_lm.sharding import make_rules

    def build(
        preset: str = "palm_2d",
        data: int = 1,
        tensor: int = 1,
        expert: int = 1,
        zero: int = 3,
        context: int = 1,
        ring: bool = False,
        dtype=None,
        **changes,
    ) -> Model:
        mesh = make_mesh(MeshConfig(data=data, expert=expert, context=context, tensor=tensor))
        rules = make_rules(preset, mesh, zero, ring=ring)
        return Model(tiny(**changes), rules) if dtype is None else Model(tiny(**changes), rules, dtype)

    return build


@pytest.fixture(scope="session")
def draw() -> Callable:
    """`draw(model, seed)` is parameters from numpy, the same on every mesh, without compiling anything.

    Norm scales are not left at one, where a missing or misplaced scale would not show.
    """
    from flax import nnx

    from pathways_lm.sharding import on_mesh

    def parameters(model, seed: int = 0) -> dict:
        random = np.random.default_rng(seed)

        def one(variable) -> jax.Array:
            value = variable.get_value()
            noise = random.normal(size=value.shape)
            drawn = variable.std * noise if variable.std else 1 + 0.2 * noise
            return jax.device_put(drawn.astype(np.float32), on_mesh(value, model.rules.mesh).sharding)

        is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
        return nnx.to_pure_dict(jax.tree.map(one, model.variables, is_leaf=is_variable))

    return parameters


@pytest.fixture(scope="session")
def write_tfds() -> Callable[..., None]:
    """Makes a folder of TensorFlow Datasets, name/config/version, of features and of each split's rows."""

    def write(folder: Path, features: dict, splits: dict[str, list[dict]]) -> None:
        from pathways_lm.data.quiet_tensorflow import tf, tfds

        folder.mkdir(parents=True)
        described = tfds.features.FeaturesDict(features)
        infos = []
        for split, rows in splits.items():
            records = [described.serialize_example(described.encode_example(row)) for row in rows]
            template = tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=folder.parents[1].name, split=split, filetype_suffix="tfrecord"
            )
            with tf.io.TFRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1))) as writer:
                for record in records:
                    writer.write(record)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(records)],
                    num_bytes=sum(map(len, records)),
                    filename_template=template,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=folder, features=described, split_infos=infos, version=folder.name, check_data=False
        )

    return write
