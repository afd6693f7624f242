"""How parameters are moved."""

import math
import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded, parse_patterns
from pathways_lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """An optimizer and its schedule. The defaults are PaLM's Adafactor (section 5.1)."""

    section: typing.ClassVar[str] = "optimizer"

    name: str = bounded("adafactor", one_of=("adafactor", "adamw", "adam", "lion", "muon"))
    """`muon` moves the matrices of blocks; all other parameters are AdamW's."""
    schedule: str = bounded("rsqrt", one_of=("rsqrt", "cosine", "linear", "wsd", "constant"))
    """After the warm-up: `rsqrt` holds the rate until step `hold_steps`, then falls as 1/sqrt(step); `cosine` and
    `linear` fall until the run's end; `wsd` holds it for `hold_steps` and falls over `decay_steps`."""
    learning_rate: float = bounded(1e-2, above=0)
    warmup_steps: int = bounded(0, at_least=0)
    """Steps over which the rate rises in a line, of any schedule."""
    warmup_tokens: int = bounded(0, at_least=0)
    """The same in tokens, data.batch_size x data.sequence_length a step, in place of `warmup_steps`."""
    hold_steps: int = bounded(10_000, at_least=1)
    """`rsqrt`: the last step at the full rate. `wsd`: steps at it."""
    decay_steps: int = bounded(0, at_least=0)
    """`wsd`: steps of the fall."""
    final_fraction: float = bounded(0.1, at_least=0, at_most=1)
    """`cosine`, `linear` and `wsd`: the share of the rate that is left at the end."""
    beta1: float = bounded(0.9, at_least=0, at_most=0.9999)
    """Of the first moment. Adafactor without it, at 0, keeps none."""
    beta2: float = bounded(0.95, at_least=0, at_most=0.9999)
    """Of the second moment, Lion's of its only one; Adafactor's is 1 - step^-`beta2_exponent`."""
    beta2_exponent: float = bounded(0.8, above=0)
    beta2_cap: float = bounded(1.0, above=0, at_most=1)
    """Adafactor: beta2 stays at or below it (GShard, GLaM: 0.99)."""
    factored: bool = False
    """Adafactor: a matrix's second moment is kept as means of its rows and columns. PaLM's is not."""
    factored_from: int = bounded(128, at_least=1)
    """Rows and columns that a matrix must have, both, to be factored."""
    update_clip: float = bounded(0.0, at_least=0)
    """Adafactor: an update's RMS, before rate and scale, is brought down to it (T5: 1); 0 leaves it."""
    muon_momentum: float = bounded(0.95, at_least=0, at_most=0.9999)
    moments: str = bounded("float32", one_of=("float32", "bfloat16"))
    """How moments are stored. Arithmetic is fp32."""
    weight_decay: float = bounded(1.0, at_least=0)
    """Adafactor: parameters shrink by this times rate squared each step (PaLM: 1). Others: by this times rate."""
    undecayed: str = ""
    """Patterns of parameters that do not shrink: `embedding,router`. Of others than Adafactor, norms and biases never
    do."""
    rates: str = ""
    """Factors of the rate of parameters by pattern: `embedding=0.1,router=0.5`. The first that fits counts."""
    clip_norm: float = bounded(1.0, at_least=0)
    """Gradients are brought down together to this norm; 0 leaves them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps and self.warmup_tokens:
            raise ConfigError(
                f"optimizer.warmup_steps={self.warmup_steps} and optimizer.warmup_tokens={self.warmup_tokens} are two "
                "lengths of one warm-up; set one of them"
            )
        if self.name == "adam" and self.weight_decay:
            raise ConfigError(
                f"optimizer.weight_decay={self.weight_decay} must be 0 with optimizer.name='adam'; "
                "'adamw' is Adam that decays"
            )
        if self.schedule == "wsd" and not self.decay_steps:
            raise ConfigError("optimizer.decay_steps is not set: 'wsd' needs steps over which the rate falls")
        parse_rates(self.rates)
        parse_patterns("optimizer.undecayed", self.undecayed)

    def check_length(self, num_steps: int, tokens_per_step: int) -> None:
        """Raises ConfigError where the schedule's parts do not make up a run of so many steps."""
        warmup = warmup_length(self.warmup_steps, self.warmup_tokens, tokens_per_step)
        steps = math.ceil(warmup)
        told = f"optimizer.warmup_steps={steps}"
        if self.warmup_tokens:
            told = f"optimizer.warmup_tokens={self.warmup_tokens}, {steps} steps of {tokens_per_step} tokens,"
        if warmup >= num_steps:
            raise ConfigError(f"{told} must be below train.num_steps={num_steps}")
        if self.schedule == "rsqrt" and warmup > self.hold_steps:
            raise ConfigError(f"{told} must not be above optimizer.hold_steps={self.hold_steps}, where the rate falls")
        total = steps + self.hold_steps + self.decay_steps
        if self.schedule == "wsd" and total != num_steps:
            left = num_steps - steps - self.decay_steps
            cure = f"optimizer.hold_steps={left}" if left > 0 else "a shorter warm-up or decay"
            raise ConfigError(
                f"{told} + optimizer.hold_steps={self.hold_steps} + optimizer.decay_steps={self.decay_steps} are "
                f"{total} steps of train.num_steps={num_steps}; {cure} would fit"
            )


def warmup_length(steps: int, tokens: int, tokens_per_step: int) -> float:
    """Steps of a warm-up, not rounded. One in tokens is taken to read as many in each of its steps."""
    return tokens / tokens_per_step if tokens else float(steps)


def parse_rates(text: str) -> tuple[tuple[str, float], ...]:
    """`optimizer.rates` as patterns and factors. Raises ConfigError where it is something else."""
    return tuple(_factor(entry) for entry in parse_patterns("optimizer.rates", text))


def _factor(entry: str) -> tuple[str, float]:
    pattern, _, factor = entry.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = math.nan
    if not pattern or not 0 <= value < math.inf:
        raise ConfigError(f"optimizer.rates has {entry!r}; an entry is a pattern, '=' and a factor of 0 or above")
    return pattern.strip(), value
