"""Shares of tasks that follow their losses, with all they remember."""

from collections.abc import Mapping
from typing import Any

from pathways_lm.config import MixingConfig
from pathways_lm.data.mixing import Mixture
from pathways_lm.data.shares import Shares, excess_loss, first_shares, loss_ratio, parse, rounded
from pathways_lm.errors import ConfigError

ADAPTIVE = ("excess_loss", "loss_ratio")


class Balance:
    """Changes a mixture's shares every `mixing.interval` steps; a mixture of fixed shares never.

    Args:
      sizes: bytes of text of each task.
      sequences: packed sequences of each task.
      total: sequences that the whole run reads.

    Raises:
      ConfigError: shares that are to follow losses, of a single task.
    """

    def __init__(self, config: MixingConfig, sizes: Mapping[str, float], sequences: Mapping[str, int], total: int):
        self.config = config
        self.base = first_shares(config, sizes, sequences, total)
        self.mixture = Mixture.start(self.base)
        self._exact = dict(self.base)
        """The shares before they were rounded, so that small changes add up."""
        self.adaptive = config.rule in ADAPTIVE
        learned = [task for task, share in self.base.items() if share]
        if self.adaptive and len(learned) == 1:
            raise ConfigError(
                f"mixing.rule={config.rule!r} moves shares between tasks, and '{learned[0]}' is the only one that has "
                "any; give a mixture of several or mixing.rule='proportional'"
            )
        given = parse(config.references, "mixing.references", sizes) if config.references else {}
        self._given = {task: loss for task, loss in given.items() if loss}
        self._references = dict(self._given)
        self._nll = dict.fromkeys(self.base, 0.0)
        self._tokens = dict.fromkeys(self.base, 0.0)

    def due(self, step: int) -> bool:
        """Whether the shares change between the first `step` steps and the next."""
        return self.adaptive and step > 0 and step % self.config.interval == 0

    def note(self, nll: Mapping[str, float], tokens: Mapping[str, float]) -> None:
        """Sums over a step's targets of each task."""
        for task in self.base:
            self._nll[task] += nll[task]
            self._tokens[task] += tokens[task]

    def change(self, row: int) -> Shares:
        """Shares from `row` on by the losses noted since the last change, which are then forgotten."""
        losses = {task: self._nll[task] / self._tokens[task] for task in self.base if self._tokens[task]}
        how = (self.config.rate, self.config.smoothing)
        if self.config.rule == "excess_loss":
            self._exact = excess_loss(self._exact, losses, self._given, *how)
        else:
            for task, loss in losses.items():
                self._references.setdefault(task, loss)
            self._exact = loss_ratio(self.base, losses, self._references, *how)
        shares = rounded(self._exact)
        self.mixture.change(row, shares)
        self._nll, self._tokens = dict.fromkeys(self.base, 0.0), dict.fromkeys(self.base, 0.0)
        return shares

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; floats come back to the last bit."""
        return {
            "mixture": self.mixture.to_json(),
            "base": self.base,
            "exact": self._exact,
            "references": self._references,
            "nll": self._nll,
            "tokens": self._tokens,
        }

    def restore(self, values: Mapping[str, Any], row: int) -> None:
        """Goes on as a checkpoint says. Where the config gives other first shares now, they hold from `row` on."""
        self.mixture.segments = Mixture.from_json(values["mixture"]).segments
        if values["base"] != self.base:
            self.mixture.change(row, self.base)
            return
        self._exact = dict(values["exact"])
        self._references = {**values["references"], **self._given}
        self._nll, self._tokens = dict(values["nll"]), dict(values["tokens"])
