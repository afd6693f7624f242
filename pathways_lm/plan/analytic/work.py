"""What one device has of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pathways_lm.config import DataConfig, Experiment, ModelConfig
from pathways_lm.data.objectives import abstract_batch
from pathways_lm.kernels.choice import Asked, Choice, choose
from pathways_lm.models.attentions import asked_of
from pathways_lm.plan.analytic.parameters import Cuts, Parameter, neutral_model, parameters
from pathways_lm.train.flops import read_tokens
from pathways_lm.train.precision import POLICIES

FP32 = 4
BLOCKS = ("block", "offload")
"""Values of `model.remat` with which whole layers are computed again."""


@dataclass(frozen=True)
class Tower:
    """The layers of one kind on a device, and what goes through them in a microbatch."""

    name: str
    repeats: int
    """Turns of the loop over layers, of the device's stage."""
    rows: int
    """Sequences of the device."""
    length: int
    """Of the device's part of a sequence."""
    seen: int
    """Tokens that attention looks at: the whole sequence."""
    memory: int
    """Tokens of an encoder that it looks at, too."""

    @property
    def tokens(self) -> int:
        """Tokens of the device in a microbatch."""
        return self.rows * self.length


@dataclass(frozen=True)
class Work:
    """An experiment cut for one device."""

    experiment: Experiment
    cuts: Cuts
    stages: int
    towers: tuple[Tower, ...]
    parameters: tuple[Parameter, ...]
    item: int
    """Bytes of a number in arithmetic."""
    fused: bool
    """Whether the machine's compiler fuses what stands around a product into it, as TPU's does and GPUs' does not."""
    attentions: Mapping[str, Choice]
    """Which are chosen, by tower and `cross`."""

    @property
    def model(self) -> ModelConfig:
        """The model's config."""
        return self.experiment.model

    @property
    def has_prefix(self) -> bool:
        """Whether tokens see what stands behind them in a prefix."""
        return abstract_batch(self.experiment.data).prefix is not None

    @property
    def microbatches(self) -> int:
        """Parts of a batch."""
        return self.experiment.train.microbatches

    @property
    def chunks(self) -> int:
        """Runs of layers of each stage."""
        return self.experiment.mesh.chunks

    @property
    def last(self) -> Tower:
        """The tower whose tokens are scored."""
        return self.towers[-1]

    def of(self, tower: str) -> list[Parameter]:
        """One turn's parameters; those outside of towers for an empty name."""
        return [each for each in self.parameters if each.tower == tower]


def work_of(experiment: Experiment, cuts: Cuts, fused: bool) -> Work:
    """What one device has of the experiment. Raises ConfigError where the attention that it names cannot serve."""
    lengths = [tokens.shape[1] for tokens in read_tokens(abstract_batch(experiment.data))]
    names = ("encoder", "decoder") if experiment.model.shape == "encoder_decoder" else (experiment.model.shape,)
    rows = experiment.data.batch_size // experiment.train.microbatches // cuts.parts["batch"]
    found = parameters(experiment.model)
    stages = cuts.parts["stage"]
    towers = []
    for name, length in zip(names, lengths, strict=True):
        repeats = max(each.layers for each in found if each.tower == name)
        cut = -(-length // cuts.parts["length"])
        memory = lengths[0] if name == "decoder" and len(lengths) > 1 else 0
        towers.append(Tower(name, -(-repeats // stages), rows, cut, length, memory))
    item = POLICIES[experiment.train.precision].compute.itemsize
    return Work(experiment, cuts, stages, tuple(towers), found, item, fused, _attentions(experiment, cuts, fused))


def _attentions(experiment: Experiment, cuts: Cuts, fused: bool) -> dict[str, Choice]:
    """By tower. What is asked does not depend on the layout, but for how many sequences a microbatch has."""
    rows = experiment.data.batch_size // experiment.train.microbatches
    platform = "tpu" if fused else "gpu"
    return {
        name: choose(experiment.model, cuts.rules, each._replace(rows=rows), strict=True, platform=platform)
        for name, each in _asked(experiment.model, experiment.data, experiment.train.precision)
    }


@lru_cache(maxsize=64)
def _asked(model: ModelConfig, data: DataConfig, precision: str) -> tuple[tuple[str, Asked], ...]:
    half = POLICIES[precision].compute.itemsize == 2
    return tuple(asked_of(neutral_model(model), abstract_batch(data), half).items())
