"""An experiment, and its way to plain values and back."""

import dataclasses
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pathways_lm.checked import Checked
from pathways_lm.config.data import OF_PAIRS, OF_TEXTS, DataConfig
from pathways_lm.config.mesh import MeshConfig
from pathways_lm.config.mixing import MixingConfig
from pathways_lm.config.model import ModelConfig
from pathways_lm.config.optimizer import OptimizerConfig
from pathways_lm.config.train import HIGHER_IS_BETTER, SampleConfig, TrainConfig
from pathways_lm.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
    """Everything that decides a run."""

    name: str
    model: ModelConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    mixing: MixingConfig = MixingConfig()
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
        self._check_spikes()
        self.optimizer.check_length(self.train.num_steps, self.tokens_per_step)
        self._check_validation()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch, as the papers count them: of an encoder-decoder, the encoder's."""
        return self.data.batch_size * self.data.sequence_length

    def _check_validation(self) -> None:
        """What is asked at validation, and what the best checkpoints are told by, is there to be had."""
        train, objective = self.train, self.data.objective
        if train.evaluate_examples and objective != "text_to_text":
            raise ConfigError(
                f"train.evaluate_examples={train.evaluate_examples} is for data.objective='text_to_text', not "
                f"{objective!r}"
            )
        if train.checkpoints_best and train.checkpoints_best_by == "bits_per_byte" and objective != "causal":
            raise ConfigError(
                f"train.checkpoints_best_by='bits_per_byte' is for data.objective='causal', not {objective!r}; "
                "use 'loss'"
            )
        if train.checkpoints_best and train.checkpoints_best_by in HIGHER_IS_BETTER and not train.evaluate_examples:
            raise ConfigError(
                f"train.checkpoints_best_by={train.checkpoints_best_by!r} is of answers to held-out pairs; set "
                "train.evaluate_examples, or use 'loss'"
            )

    def _check_spikes(self) -> None:
        """What is gone back to must still be there."""
        train = self.train
        reach = (train.checkpoints_kept - 1) * train.checkpoint_every
        # A spike is noticed when its row is written, one interval late.
        needed = train.spike_rewind + train.spike_patience + 2 * train.log_every
        if train.spike_threshold and reach < needed:
            raise ConfigError(
                f"train.checkpoints_kept={train.checkpoints_kept} of every {train.checkpoint_every} steps reach back "
                f"{reach} steps, and train.spike_rewind={train.spike_rewind} needs {needed}; keep "
                f"{-(-needed // train.checkpoint_every) + 1}"
            )

    def _check_objective(self) -> None:
        data, shape = self.data, self.model.shape
        of_pairs = data.objective in OF_PAIRS
        if data.inputs != "encoder" and not of_pairs:
            raise ConfigError(f"data.inputs={data.inputs!r} is for {_either(OF_PAIRS)}, not {data.objective!r}")
        needed = _shape_of(data.objective, data.inputs)
        if shape != needed:
            fitting = [name for name in (*OF_TEXTS, *OF_PAIRS) if _shape_of(name, "encoder") == shape]
            chosen, which = f"data.objective={data.objective!r}", f"it is {_either(fitting)}"
            if of_pairs and shape != "encoder":
                chosen = f"{chosen} with data.inputs={data.inputs!r}"
                which = f"data.inputs is {_either(('prefix', 'causal') if shape == 'decoder' else ('encoder',))}"
            elif shape == "decoder":
                which = f"{which}, or with data.inputs {_either(OF_PAIRS)}"
            raise ConfigError(f"{chosen} needs model.shape={needed!r}, not {shape!r}, for which {which}")
        if data.whole_words and data.objective != "masked":
            raise ConfigError(f"data.whole_words=True is for data.objective='masked', not {data.objective!r}")
        if data.targets_length and (data.objective != "text_to_text" or data.inputs != "encoder"):
            raise ConfigError(
                f"data.targets_length={data.targets_length} is for data.objective='text_to_text' with an encoder"
            )
        for name in ("sequence_length", "targets_length"):
            length = getattr(data, name)
            if self.model.positions == "learned" and length > self.model.max_length:
                raise ConfigError(f"data.{name}={length} is above model.max_length={self.model.max_length}")


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _shape_of(objective: str, inputs: str) -> str:
    """The model's shape that an objective is for."""
    if objective in OF_PAIRS:
        return "encoder_decoder" if inputs == "encoder" else "decoder"
    return "encoder" if objective == "masked" else "decoder"


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "mesh": MeshConfig,
    "data": DataConfig,
    "mixing": MixingConfig,
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
