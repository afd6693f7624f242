"""How a run goes."""

import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded, parse_patterns
from pathways_lm.errors import ConfigError

HIGHER_IS_BETTER = ("accuracy", "bleu")
"""Of the figures of validation; of the others less is better."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """How long, how precisely, and how often something is written."""

    section: typing.ClassVar[str] = "train"

    num_steps: int = bounded(at_least=1)
    seed: int = bounded(0, at_least=0, at_most=2**32 - 1)
    init_from: str = ""
    """A run folder whose parameters this run begins with, at step 0 and with a fresh optimizer, and whose vocabulary it
    has; empty draws them."""
    init_step: int = bounded(0, at_least=0)
    """That run's checkpoint; 0 is the newest."""
    init_parameters: str = ""
    """Patterns of parameters that are taken from it: `embedding,encoder`. The others are drawn. Empty takes all."""
    microbatches: int = bounded(1, at_least=1)
    """Parts a batch is cut into, whose gradients are summed before the update."""
    pipeline: str = bounded("1f1b", one_of=("gpipe", "1f1b"))
    """When stages go back: after all microbatches went forward, or, so that few are on their way, as soon as the first
    has arrived. With mesh.stage above 1."""
    precision: str = bounded("fp32", one_of=("fp32", "bf16", "bf16_pure", "fp16"))
    """The type of the arithmetic. Parameters stay fp32, but with `bf16_pure`, whose updates are rounded by chance."""
    loss_scale: float = bounded(2.0**16, above=0)
    """`fp16`: what the loss is multiplied by at first. It is halved where gradients overflow."""
    loss_scale_interval: int = bounded(2000, at_least=1)
    """`fp16`: it is doubled after so many finite updates."""
    loss_scale_floor: float = bounded(1.0, above=0)
    """`fp16`: the least it becomes."""
    skips_allowed: int = bounded(100, at_least=1)
    """Updates in a row that are not finite, which are skipped, before the run gives up."""
    spike_threshold: float = bounded(0.0, at_least=0)
    """A spike is a step whose loss and gradient norm lie so many robust deviations above the steps before it, or
    `spike_patience` in a row whose loss does; 0 looks for none."""
    spike_window: int = bounded(100, at_least=20)
    """Steps that a step is compared with."""
    spike_patience: int = bounded(5, at_least=1)
    spike_rewind: int = bounded(100, at_least=1)
    """After a spike, what is skipped begins so many steps before it (PaLM, section 5.1: roughly 100)."""
    spike_skip: int = bounded(200, at_least=1)
    """Batches that are skipped (PaLM: roughly 200 to 500)."""
    spikes_allowed: int = bounded(10, at_least=1)
    """Spikes after which the run gives up."""
    z_loss: float = bounded(1e-4, at_least=0)
    log_every: int = bounded(10, at_least=1)
    eval_every: int = bounded(500, at_least=1)
    evaluate_examples: int = bounded(0, at_least=0)
    """For text_to_text: so many held-out pairs of each task are answered at each validation, and scored by the task's
    metrics; 0 asks nothing."""
    checkpoint_every: int = bounded(500, at_least=1)
    checkpoints_kept: int = bounded(3, at_least=2)
    """Two at least: should the newest be damaged, the one before is used."""
    checkpoints_kept_every: int = bounded(0, at_least=0)
    """Besides, those of every so many steps are kept for ever; 0 keeps none."""
    checkpoints_best: int = bounded(0, at_least=0)
    """Besides, so many with the best `checkpoints_best_by` are kept; 0 keeps none."""
    checkpoints_best_by: str = bounded("loss", one_of=("loss", "bits_per_byte", "accuracy", "bleu"))
    """The figure of validation that tells the best checkpoints: the lowest loss or bits, or, of what
    `evaluate_examples` asks, the highest mean accuracy or BLEU over the tasks."""
    checkpoint_dir: str = ""
    """A folder or URL (gs://bucket/folder) for this run's checkpoints alone; empty is the run folder."""
    profile_steps: str = ""
    """Steps that are traced: `10:13` are steps 10, 11 and 12. The report tells where their time went; empty traces
    none."""
    watchdog_seconds: int = bounded(1800, at_least=0)
    """A run in which nothing is finished for so long is ended, to be started again; 0 waits for ever."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_patterns("train.init_parameters", self.init_parameters)
        if self.profile_steps and self.profiled.stop > self.num_steps + 1:
            raise ConfigError(
                f"train.profile_steps={self.profile_steps!r} ends behind the last of train.num_steps={self.num_steps}"
            )
        for name in ("init_step", "init_parameters"):
            if getattr(self, name) and not self.init_from:
                raise ConfigError(
                    f"train.{name}={getattr(self, name)!r} is of the run that train.init_from names: set it"
                )

    @property
    def profiled(self) -> range:
        """The steps that are traced. Raises ConfigError where `profile_steps` names none."""
        if not self.profile_steps:
            return range(0)
        first, colon, behind = self.profile_steps.partition(":")
        digits = first.isascii() and first.isdigit() and behind.isascii() and behind.isdigit()
        if not (colon and digits) or not 1 <= int(first) < int(behind):
            raise ConfigError(
                f"train.profile_steps={self.profile_steps!r} must be the first step and the one behind the last, as "
                "'10:13' for steps 10 to 12"
            )
        return range(int(first), int(behind))


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Checked):
    """The text written at each validation, to be read in the report."""

    section: typing.ClassVar[str] = "sample"

    prompt: str = "def "
    num_tokens: int = bounded(64, at_least=1)
    temperature: float = bounded(0.7, at_least=0)
    """0 is greedy."""
    top_k: int = bounded(0, at_least=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = bounded(0.95, above=0, at_most=1)
    """Keep the likeliest tokens whose probabilities add up to this."""
