"""How parameters are moved."""

import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """PaLM's Adafactor (section 5.1) or AdamW."""

    section: typing.ClassVar[str] = "optimizer"

    name: str = bounded("adafactor", one_of=("adafactor", "adamw"))
    schedule: str = bounded("rsqrt", one_of=("rsqrt", "cosine"))
    """`rsqrt` holds the rate for `hold_steps`, then falls as 1/sqrt(step); `cosine` warms up and falls to a tenth."""
    learning_rate: float = bounded(1e-2, above=0)
    hold_steps: int = bounded(10_000, at_least=1)
    """`rsqrt`: steps at the full rate. `cosine`: steps of warm-up."""
    beta1: float = bounded(0.9, at_least=0, at_most=0.9999)
    beta2: float = bounded(0.95, at_least=0, at_most=0.9999)
    """AdamW only; Adafactor's is 1 - step^-0.8."""
    weight_decay: float = bounded(1.0, at_least=0)
    """Adafactor: parameters shrink by this times rate squared each step (PaLM: 1). AdamW: by this times rate."""
    clip_norm: float = bounded(1.0, above=0)
