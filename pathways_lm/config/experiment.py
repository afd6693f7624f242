"""An experiment, and its way to plain values and back."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from pathways_lm.checked import Checked
from pathways_lm.config.data import DataConfig
from pathways_lm.config.mesh import MeshConfig
from pathways_lm.config.model import ModelConfig
from pathways_lm.config.optimizer import OptimizerConfig
from pathways_lm.config.train import SampleConfig, TrainConfig
from pathways_lm.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
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
        if self.mesh.chunks > 1 and self.mesh.stage == 1:
            raise ConfigError(f"mesh.chunks={self.mesh.chunks} is for pipelines; mesh.stage is 1")
        if self.mesh.stage > 1 and self.train.microbatches < self.mesh.stage:
            raise ConfigError(
                f"train.microbatches={self.train.microbatches} is below mesh.stage={self.mesh.stage}: some stages "
                f"would always wait; {self.mesh.stage} would be enough"
            )
        if self.mesh.chunks > 1 and self.train.microbatches % self.mesh.stage:
            raise ConfigError(
                f"train.microbatches={self.train.microbatches} must be a multiple of mesh.stage={self.mesh.stage} with "
                f"mesh.chunks={self.mesh.chunks}"
            )
        if self.data.batch_size % self.train.microbatches:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} does not divide into "
                f"train.microbatches={self.train.microbatches}"
            )
        self._check_objective()
        train = self.train
        if train.checkpoints_best and train.checkpoints_best_by == "bits_per_byte" and self.data.objective != "causal":
            raise ConfigError(
                f"train.checkpoints_best_by='bits_per_byte' is for data.objective='causal', not "
                f"{self.data.objective!r}; use 'loss'"
            )
        if self.optimizer.schedule == "cosine" and self.optimizer.hold_steps >= self.train.num_steps:
            raise ConfigError(
                f"optimizer.hold_steps={self.optimizer.hold_steps} of warm-up must be below "
                f"train.num_steps={self.train.num_steps}"
            )

    def _check_objective(self) -> None:
        shapes = {"causal": "decoder", "prefix": "decoder", "span_corruption": "encoder_decoder", "masked": "encoder"}
        needed = shapes[self.data.objective]
        if self.model.shape != needed:
            fitting = " or ".join(repr(name) for name, shape in shapes.items() if shape == self.model.shape)
            raise ConfigError(
                f"data.objective={self.data.objective!r} needs model.shape={needed!r}, not {self.model.shape!r}, "
                f"for which it is {fitting}"
            )
        if self.model.positions == "learned" and self.data.sequence_length > self.model.max_length:
            raise ConfigError(
                f"data.sequence_length={self.data.sequence_length} is above model.max_length={self.model.max_length}"
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
    sections = {name: build(kind, values.get(name, {})) for name, kind in SECTIONS.items()}
    return build(Experiment, {**values, **sections})


def build(kind: type, values: dict[str, Any]) -> Any:
    """`kind(**values)`, sections within it built from their own values; unknown and missing fields are told by name."""
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
    types = typing.get_type_hints(kind)
    built = {
        name: build(types[name], value) if isinstance(value, dict) and issubclass(types[name], Checked) else value
        for name, value in values.items()
    }
    return kind(**built)
