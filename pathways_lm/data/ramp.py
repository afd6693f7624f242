"""Which rows of the training stream each step reads: batches may grow during a run.

PaLM (arXiv:2204.02311, section 5.1): 512 sequences, 1,024 from step 50,000 on, 2,048 from step 115,000 on.
MT-NLG (arXiv:2201.11990, section 3.2): from 32 to 1,920 by 32 over the first 12 billion tokens.
"""

import itertools
import math
import re
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from pathways_lm.config import DataConfig, Experiment
from pathways_lm.errors import ConfigError
from pathways_lm.sharding import Rules


@dataclass(frozen=True)
class Stretch:
    """Steps whose batches are of one size."""

    first_step: int
    first_row: int
    """Rows that all steps before read."""
    batch_size: int


@dataclass(frozen=True)
class Ramp:
    """Batch sizes over a run, and what was left out of it.

    Row i of the stream is always the same; a step reads the rows behind those of the step before. After a spike some
    rows are skipped: those behind a step are then read by none.
    """

    stretches: tuple[Stretch, ...]
    skips: tuple[tuple[int, int], ...] = ()
    """(step, rows): so many rows are left out in front of that step, counted from 0, in the order of steps."""

    def batch_size(self, step: int) -> int:
        """Rows of the batch of a step, counted from 0."""
        return self._stretch(step).batch_size

    def first_row(self, step: int) -> int:
        """The first row of that batch."""
        return self.rows_before(step) + sum(rows for at, rows in self.skips if at <= step)

    def tokens_read(self, length: int, steps: Array) -> Array:
        """Tokens of the first `steps` steps, fp32, for rows of `length` tokens; traceable."""
        first = jnp.array([stretch.first_step for stretch in self.stretches], jnp.float32)
        rows = jnp.array([stretch.first_row for stretch in self.stretches], jnp.float32)
        sizes = jnp.array([stretch.batch_size for stretch in self.stretches], jnp.float32)
        place = jnp.searchsorted(first, steps, side="right") - 1
        return length * (rows[place] + (steps - first[place]) * sizes[place])

    def rows_before(self, step: int) -> int:
        """Rows that the steps before read."""
        stretch = self._stretch(step)
        return stretch.first_row + (step - stretch.first_step) * stretch.batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every batch size, once each, in order."""
        return tuple(dict.fromkeys(stretch.batch_size for stretch in self.stretches))

    def _stretch(self, step: int) -> Stretch:
        return next(stretch for stretch in reversed(self.stretches) if stretch.first_step <= step)


def make_ramp(config: DataConfig) -> Ramp:
    """The ramp that `data.batch_ramp` tells. Raises ConfigError for one that cannot be read or does not rise."""
    text, last = config.batch_ramp, config.batch_size
    pairs = _by_steps(text) if "x" in text else _by_tokens(text, last, config.sequence_length) if text else []
    sizes = [size for size, _ in pairs] + [last]
    if any(below >= above for below, above in itertools.pairwise(sizes)):
        rising = " -> ".join(map(str, sizes))
        raise ConfigError(f"data.batch_ramp='{text}' must rise to data.batch_size={last}; it goes {rising}")
    stretches, step, row = [], 0, 0
    for size, steps in [*pairs, (last, 0)]:
        stretches.append(Stretch(step, row, size))
        step, row = step + steps, row + steps * size
    return Ramp(tuple(stretches))


def microbatches(experiment: Experiment, batch_size: int) -> int:
    """Parts of a batch on the way to the full size: in proportion, so that a part stays as large, but at least one."""
    return max(experiment.train.microbatches * batch_size // experiment.data.batch_size, 1)


def check_ramp(experiment: Experiment, ramp: Ramp, rules: Rules) -> None:
    """Raises ConfigError where a batch on the way does not divide into microbatches over the devices."""
    told = f"data.batch_ramp='{experiment.data.batch_ramp}'"
    devices = rules.parts("batch")
    for size in ramp.sizes:
        parts = microbatches(experiment, size)
        if size % (devices * parts):
            of = f"{parts} microbatches x the {devices} devices that share a batch"
            raise ConfigError(f"{told}: {size} is not divisible by {of}; multiples of {devices * parts} are")
        if parts < rules.stages:
            raise ConfigError(
                f"{told}: batches of {size} have {parts} microbatches, and mesh.stage={rules.stages} needs as many"
            )


def _by_steps(text: str) -> list[tuple[int, int]]:
    """`512x50000,1024x65000`: batches of a size, and for how many steps."""
    pairs = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", part)
        if not found:
            raise _unreadable(text)
        pairs.append((int(found.group(1)), int(found.group(2))))
    return pairs


def _by_tokens(text: str, last: int, length: int) -> list[tuple[int, int]]:
    """`32+32/12e9`: from a size by so much over so many tokens. Each size is given as many sequences as the others."""
    found = re.fullmatch(r"\s*([1-9]\d*)\+([1-9]\d*)/([\d.e+]+)\s*", text)
    try:
        first, by, tokens = int(found.group(1)), int(found.group(2)), float(found.group(3))  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        raise _unreadable(text) from None
    if (last - first) % by or last <= first:
        raise ConfigError(f"data.batch_ramp='{text}': {first} by {by} does not lead to data.batch_size={last}")
    sizes = range(first, last, by)
    sequences = tokens / length / len(sizes)
    return [(size, max(math.ceil(sequences / size), 1)) for size in sizes]


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"data.batch_ramp='{text}' must read SIZExSTEPS,… as 512x50000,1024x65000, or FIRST+BY/TOKENS as 32+32/12e9"
    )
