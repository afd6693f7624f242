"""What is predicted: packed rows of tokens into what a model reads and should say.

The noise of a row is a function of (seed, number of the row) alone, so that a batch is the same on any number of hosts.
A row holds whole or cut documents, each closed by its end-of-document token, and padding (0) after the last; of pairs
it holds whole ones (`towers.text_to_text`).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import jax
import numpy as np

from pathways_lm.config import DataConfig
from pathways_lm.config.data import OF_PAIRS
from pathways_lm.data.objectives.denoise import (
    T5_DENOISERS,
    UL2_DENOISERS,
    Ids,
    Room,
    denoise_one_tower,
    denoise_two_towers,
    room,
)
from pathways_lm.data.objectives.language import causal, prefix
from pathways_lm.data.objectives.masked import masked
from pathways_lm.data.objectives.middle import SENTINELS, MiddleRates, fill_in_the_middle, middle_raw_length
from pathways_lm.data.objectives.towers import text_to_text
from pathways_lm.errors import ConfigError
from pathways_lm.models.batch import Batch
from pathways_lm.sharding import Rules

Objective = Callable[[np.ndarray, Sequence[int]], Batch]
"""From int32 rows [B, raw length] and their numbers to a batch of numpy arrays."""

_DENOISERS = {"span_corruption": T5_DENOISERS, "ul2": UL2_DENOISERS}
_MODES = 3
# From here on every objective has room for two tokens.
_SHORTEST = 8


class Vocabulary(Protocol):
    """What objectives need of a vocabulary."""

    @property
    def size(self) -> int: ...
    @property
    def eod_id(self) -> int: ...
    @property
    def word_edges(self) -> tuple[np.ndarray, np.ndarray]: ...


def make_objective(config: DataConfig, vocabulary: Vocabulary) -> Objective:
    """The objective that `config` names. Raises ConfigError where it needs more extra ids than there are."""
    needed = extra_ids_needed(config)
    if config.extra_ids < needed:
        raise ConfigError(
            f"data.extra_ids={config.extra_ids} is too few: data.objective={config.objective!r} with "
            f"data.sequence_length={config.sequence_length} needs {needed}"
        )
    first_extra, end, seed = vocabulary.size, vocabulary.eod_id, config.seed
    length, both_ways = config.sequence_length, config.inputs == "prefix"
    if config.objective in _DENOISERS:
        return _denoising(config, Ids(end, first_extra + config.extra_ids - 1, first_extra))
    makers: dict[str, Callable[[], Objective]] = {
        "causal": lambda: lambda rows, _: causal(rows, end),
        "prefix": lambda: lambda rows, numbers: prefix(rows, end, _generators(seed, numbers)),
        "masked": lambda: _masked(config, vocabulary),
        "fill_in_the_middle": lambda: (
            lambda rows, numbers: fill_in_the_middle(
                rows,
                length,
                end,
                first_extra,
                MiddleRates(config.middle_rate, config.middle_spm_rate),
                _generators(seed, numbers),
            )
        ),
        "text_to_text": lambda: lambda rows, _: text_to_text(rows, end, inputs_length(config), both_ways),
    }
    return makers[config.objective]()


def _denoising(config: DataConfig, ids: Ids) -> Objective:
    denoisers, seed, length = _DENOISERS[config.objective], config.seed, config.sequence_length
    if config.inputs == "encoder":
        lengths = (length, _room(config).targets)
        return lambda rows, numbers: denoise_two_towers(rows, denoisers, lengths, ids, _generators(seed, numbers))
    both_ways = config.inputs == "prefix"
    return lambda rows, numbers: denoise_one_tower(rows, denoisers, length, ids, _generators(seed, numbers), both_ways)


def _masked(config: DataConfig, vocabulary: Vocabulary) -> Objective:
    edges = vocabulary.word_edges if config.whole_words else None
    end, mask, seed = vocabulary.eod_id, vocabulary.size, config.seed
    return lambda rows, numbers: masked(rows, end, mask, _generators(seed, numbers), edges)


def raw_length(config: DataConfig) -> int:
    """Tokens of a packed row: so many that, after noise, `sequence_length` are read."""
    if config.objective in _DENOISERS:
        return _room(config).raw
    if config.objective == "fill_in_the_middle":
        raw = middle_raw_length(config.sequence_length)
        if raw < 2:
            raise _too_short(config)
        return raw
    return sum(_lengths(config))


def inputs_length(config: DataConfig) -> int:
    """Of a packed row of pairs, the tokens that are for an encoder; 0 where there is none."""
    return config.sequence_length if config.objective == "text_to_text" and config.inputs == "encoder" else 0


def extra_ids_needed(config: DataConfig) -> int:
    """One for a mask, three for modes or a middle, one for each span that is dropped."""
    if config.objective in _DENOISERS:
        return _room(config).spans + (_MODES if config.objective == "ul2" else 0)
    return {"masked": 1, "fill_in_the_middle": SENTINELS}.get(config.objective, 0)


def _room(config: DataConfig) -> Room:
    found = room(_DENOISERS[config.objective], config.sequence_length, config.inputs == "encoder")
    if not found.raw:
        raise _too_short(config)
    return found


def _too_short(config: DataConfig) -> ConfigError:
    return ConfigError(
        f"data.sequence_length={config.sequence_length} is too short for data.objective={config.objective!r}"
    )


def _lengths(config: DataConfig) -> tuple[int, ...]:
    """Of what is read, and of the targets where a decoder beside an encoder says them."""
    if config.objective not in OF_PAIRS or config.inputs != "encoder":
        return (config.sequence_length,)
    if config.objective == "text_to_text":
        return config.sequence_length, config.targets_length or config.sequence_length
    return config.sequence_length, _room(config).targets


def abstract_batch(config: DataConfig) -> Batch:
    """What a batch looks like, without a corpus or a vocabulary: shapes and types of `make_objective`'s arrays."""

    def rows(length: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, length), dtype)

    read, *asked = map(rows, _lengths(config))
    if asked:
        return Batch(asked[0], asked[0], asked[0], encoder_tokens=read, encoder_segments=read)
    both_ways = config.objective == "prefix" or (config.inputs == "prefix" and config.objective in OF_PAIRS)
    return Batch(read, read, read, prefix=rows(config.sequence_length, np.bool_) if both_ways else None)


def check_lengths(config: DataConfig, rules: Rules) -> None:
    """Raises ConfigError where the devices that share a sequence do not divide its length.

    Each has two chunks of it (`kernels.zigzag`); what lies between blocks may be cut further.
    """
    context, between = rules.parts("length"), rules.parts("residual_length")
    chunks = 2 * context if context > 1 else 1
    needed = math.lcm(chunks, between)

    def uneven(length: int) -> int | None:
        """Of what is read and the targets, the length that is not divided."""
        if length % needed:
            return length
        return next((found for found in _lengths(replace(config, sequence_length=length)) if found % needed), None)

    found = uneven(config.sequence_length)
    if found is None:
        return
    cutting = [axis for axis in rules.axes("residual_length") if rules.mesh.shape[axis] > 1]
    axes = " x ".join(f"mesh.{axis}={rules.mesh.shape[axis]}" for axis in cutting)
    by = f"2 x mesh.{rules.axes('length')[0]}={context}" if found % chunks else axes
    if config.targets_length % needed:
        raise ConfigError(f"data.targets_length={config.targets_length} is not divisible by {by}")
    lengths = range(config.sequence_length, _SHORTEST, -1)
    below = next((length for length in lengths if uneven(length) is None), None)
    above = next(length for length in itertools.count(config.sequence_length) if uneven(length) is None)
    fits = " or ".join(str(length) for length in (below, above) if length)
    what = "is" if found == config.sequence_length else f"makes targets of {found} tokens, which are"
    raise ConfigError(f"data.sequence_length={config.sequence_length} {what} not divisible by {by}; {fits} would be")


def _generators(seed: int, numbers: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number]))) for number in numbers]
