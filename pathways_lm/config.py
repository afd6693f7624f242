"""An experiment as frozen dataclasses, checked when they are built.

Every field is checked for its type and range here, and for its relation to other fields in
`Experiment`. What depends on the devices (does the mesh fit?) is checked in `mesh` and `sharding`.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from pathways_lm.errors import ConfigError, nearest


def _bounded(default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A dataclass field with bounds: `above`, `at_least`, `at_most`, `one_of`."""
    if default is dataclasses.MISSING:
        return field(metadata=bounds)
    return field(default=default, metadata=bounds)


class _Checked:
    """Checks every field of a dataclass against its type and its bounds."""

    section: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            name = f"{self.section}.{item.name}" if self.section else item.name
            _check(name, getattr(self, item.name), types[item.name], item.metadata)


def _check(name: str, value: Any, kind: type, bounds: typing.Mapping[str, Any]) -> None:
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} must be {_kind_name(kind)}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value!r}")
    if "above" in bounds and not value > bounds["above"]:
        raise ConfigError(f"{name} must be above {bounds['above']}, not {value!r}")
    if "at_least" in bounds and not value >= bounds["at_least"]:
        raise ConfigError(f"{name} must be at least {bounds['at_least']}, not {value!r}")
    if "at_most" in bounds and not value <= bounds["at_most"]:
        raise ConfigError(f"{name} must be at most {bounds['at_most']}, not {value!r}")
    if "one_of" in bounds and value not in bounds["one_of"]:
        raise ConfigError(f"{name} has no choice {value!r}{nearest(str(value), bounds['one_of'])}")


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return names.get(kind, f"a {kind.__name__}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Checked):
    """A decoder of PaLM's form (arXiv:2204.02311, section 2)."""

    section: typing.ClassVar[str] = "model"

    num_layers: int = _bounded(at_least=1)
    embed_dim: int = _bounded(at_least=1)
    num_heads: int = _bounded(at_least=1)
    head_dim: int = _bounded(at_least=2)
    mlp_dim: int = _bounded(at_least=1)
    vocab_size: int = _bounded(at_least=260)
    """Rows of the embedding table: three special tokens, 256 bytes and the learned pieces."""
    rope_base: float = _bounded(10_000.0, above=0)
    norm_epsilon: float = _bounded(1e-6, above=0)
    remat: str = _bounded("none", one_of=("none", "attention", "block"))
    """What the backward pass computes again: nothing, attention (PaLM 8B and 62B), or whole blocks."""
    unroll: int = _bounded(1, at_least=1)
    """Layers per iteration of the scan. Above 1, compile time grows and CPUs run faster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs")


@dataclass(frozen=True, kw_only=True)
class MeshConfig(_Checked):
    """How many devices along each axis, and how the model's dimensions lie on them."""

    section: typing.ClassVar[str] = "mesh"

    data: int = _bounded(-1, at_least=-1)
    """Devices along the data axis; -1 takes all that the other axis leaves."""
    tensor: int = _bounded(1, at_least=-1)
    """Devices along the tensor axis; -1 takes all that the other axis leaves."""
    rules: str = "palm_2d"
    """The layout: `palm_2d`, `fsdp` or `tensor_parallel` (see `pathways_lm.sharding`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in (self.data, self.tensor):
            raise ConfigError("mesh.data and mesh.tensor must be above 0, or -1 to fill up; not 0")
        if self.data == self.tensor == -1:
            raise ConfigError("mesh.data and mesh.tensor are both -1; only one axis can fill up")


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """What is read, and how it becomes batches."""

    section: typing.ClassVar[str] = "data"

    mixture: str = "python_text"
    """A seqio task or mixture: `python_docs`, `python_stdlib` or `python_text` (both)."""
    files: str = ""
    """A glob of text or JSON-lines files, plain or gz. When given, it is read in place of `mixture`."""
    text_key: str = "text"
    """The key of a JSON line that holds the document."""
    vocabulary: str = ""
    """A SentencePiece model file; empty trains one on the corpus."""
    sequence_length: int = _bounded(2048, at_least=2)
    batch_size: int = _bounded(512, at_least=1)
    """Sequences in a batch, over all devices."""
    validation_fraction: float = _bounded(0.02, above=0, at_most=0.5)
    """The share of files kept for validation, chosen by a hash of their names."""
    seed: int = _bounded(0, at_least=0)
    cache_dir: str = "~/.cache/pathways_lm"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Checked):
    """PaLM's Adafactor (section 5.1) or AdamW."""

    section: typing.ClassVar[str] = "optimizer"

    name: str = _bounded("adafactor", one_of=("adafactor", "adamw"))
    schedule: str = _bounded("rsqrt", one_of=("rsqrt", "cosine"))
    """`rsqrt` holds the rate for `hold_steps`, then falls as 1/sqrt(step); `cosine` warms up and falls to a tenth."""
    learning_rate: float = _bounded(1e-2, above=0)
    hold_steps: int = _bounded(10_000, at_least=1)
    """`rsqrt`: steps at the full rate. `cosine`: steps of warm-up."""
    beta1: float = _bounded(0.9, at_least=0, at_most=0.9999)
    beta2: float = _bounded(0.95, at_least=0, at_most=0.9999)
    """AdamW only; Adafactor's is 1 - step^-0.8."""
    weight_decay: float = _bounded(1.0, at_least=0)
    """Adafactor: parameters shrink by this times rate squared each step (PaLM: 1). AdamW: by this times rate."""
    clip_norm: float = _bounded(1.0, above=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """How long, how precisely, and how often something is written."""

    section: typing.ClassVar[str] = "train"

    num_steps: int = _bounded(at_least=1)
    seed: int = _bounded(0, at_least=0, at_most=2**32 - 1)
    microbatches: int = _bounded(1, at_least=1)
    """Parts a batch is cut into, whose gradients are summed before the update."""
    precision: str = _bounded("fp32", one_of=("fp32", "bf16"))
    """The type of the arithmetic; parameters and optimizer stay fp32."""
    z_loss: float = _bounded(1e-4, at_least=0)
    log_every: int = _bounded(10, at_least=1)
    eval_every: int = _bounded(500, at_least=1)
    checkpoint_every: int = _bounded(500, at_least=1)
    checkpoints_kept: int = _bounded(3, at_least=2)
    """Two at least: should the newest be damaged, the one before is used."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(_Checked):
    """The text written at each validation, to be read in the report."""

    section: typing.ClassVar[str] = "sample"

    prompt: str = "def "
    num_tokens: int = _bounded(64, at_least=1)
    temperature: float = _bounded(0.7, at_least=0)
    """0 is greedy."""
    top_k: int = _bounded(0, at_least=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = _bounded(0.95, above=0, at_most=1)
    """Keep the likeliest tokens whose probabilities add up to this."""


@dataclass(frozen=True, kw_only=True)
class Experiment(_Checked):
    """Everything that decides a run."""

    name: str
    model: ModelConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name in ("", ".", "..") or "/" in self.name:
            raise ConfigError(f"name must be a plain word, it names the run folder; not {self.name!r}")
        if self.data.batch_size % self.train.microbatches:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} does not divide into "
                f"train.microbatches={self.train.microbatches}"
            )
        if self.optimizer.schedule == "cosine" and self.optimizer.hold_steps >= self.train.num_steps:
            raise ConfigError(
                f"optimizer.hold_steps={self.optimizer.hold_steps} of warm-up must be below "
                f"train.num_steps={self.train.num_steps}"
            )


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "mesh": MeshConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
}


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Nested plain values, as `config.json` holds them."""
    return dataclasses.asdict(experiment)


def from_dict(values: dict[str, Any]) -> Experiment:
    """The inverse of `to_dict`. Raises ConfigError for unknown or missing fields."""
    sections = {}
    for name, kind in SECTIONS.items():
        sections[name] = build(kind, values.get(name, {}))
    return build(Experiment, {**values, **sections})


def build(kind: type, values: dict[str, Any]) -> Any:
    """`kind(**values)`, with unknown and missing fields told by name."""
    section = getattr(kind, "section", "")
    prefix = f"{section}." if section else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{section or 'an experiment'} must hold fields by name, not {values!r}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ConfigError(f"no field '{prefix}{name}'{nearest(name, fields)}")
    for name, item in fields.items():
        if name not in values and item.default is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name} is not set, and it has no default")
    return kind(**values)
