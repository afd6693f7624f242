"""How much of each task is learned from."""

import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded


@dataclass(frozen=True, kw_only=True)
class MixingConfig(Checked):
    """Shares of the tasks of `data.mixture`. They may change when a run goes on."""

    section: typing.ClassVar[str] = "mixing"

    rule: str = bounded("proportional", one_of=("proportional", "unimax", "fixed", "excess_loss", "loss_ratio"))
    """`proportional` to what a task holds, so that all is seen equally often; `unimax`: alike, but no task more often
    than `max_epochs`; `fixed`: `weights`. The other two begin with `weights` or, without, proportional, and follow the
    losses of training: `excess_loss` (DoReMi) gives most to the task that is furthest above its reference,
    `loss_ratio` to the one that has come down least."""
    weights: str = ""
    """As `python_docs=1,python_stdlib=3`, of each task that is to be learned."""
    temperature: float = bounded(1.0, at_least=1)
    """`proportional`: sizes to the power of 1 / temperature (mT5 calls its inverse alpha)."""
    limit: int = bounded(0, at_least=0)
    """`proportional`: no task counts as larger than so many sequences (T5's K); 0 has no limit."""
    max_epochs: float = bounded(4.0, above=0)
    """`unimax`: how often a sequence is seen at most (arXiv:2304.09151, N)."""
    interval: int = bounded(100, at_least=1)
    """Steps between two changes of shares that follow losses."""
    rate: float = bounded(1.0, above=0)
    """How strongly they follow: DoReMi's step size, or the power of the ratio."""
    smoothing: float = bounded(1e-3, at_least=0, at_most=1)
    """The part that is shared out alike whatever the losses (DoReMi's c)."""
    references: str = ""
    """As `python_docs=2.1,python_stdlib=1.4`: losses in nats a token that tasks are measured against. Without,
    `excess_loss` takes 0 and `loss_ratio` the first interval's."""
