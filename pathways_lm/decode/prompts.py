"""Prompts that are read at once and go on in several rows each: the beams of a search, or candidates for a token."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import reshard

from pathways_lm.decode import program
from pathways_lm.decode.cache import Cache
from pathways_lm.decode.forward import Weights
from pathways_lm.decode.generate import LENGTH_STEP, Generator
from pathways_lm.errors import ConfigError


class Laid(NamedTuple):
    """`P` prompts, from the first column on; position -1 is padding."""

    tokens_PL: Array
    """int32: what the decoder reads."""
    positions_PL: Array
    lengths_P: Array
    """int32: tokens of each that the decoder reads."""
    read_PS: tuple[Array, Array] | None
    """Tokens and positions of what the encoder reads."""


class Group(NamedTuple):
    """Prompts that are continued together."""

    numbers: list[int]
    """Which they are; `laid` has more rows where the last is repeated to fill the mesh."""
    laid: Laid
    limits_P: Array
    """int32: most tokens to write after each."""
    steps: int
    """At least the highest of `limits_P`, rounded so that few are compiled."""


class Start(NamedTuple):
    """Where prompts go on from."""

    cache: Cache
    """As many rows for each prompt as were asked for, side by side. The next token is written into slot 0."""
    logits_PV: Array
    """fp32: of the first new token; what is never written has -inf."""
    x_PLD: Array
    """What the decoder's last layer said of its prompt, behind the last norm."""


class Reader:
    """Reads prompts for searches, with the model and the compiled weights of a `Generator`."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.form, self.forward, self.caches = generator.form, generator.forward, generator.caches
        self.rules = generator.model.rules

    @property
    def writable(self) -> int:
        """How many ids may be written."""
        return self.form.size - len({token for token in self.form.never if 0 <= token < self.form.size})

    def groups(self, prompts: Sequence[Sequence[int]], num_tokens: int, copies: int) -> Iterator[Group]:
        """Prompts of similar length together, as many as fit the generator's rows `copies` times.

        Raises ConfigError for a prompt that leaves no room in the context, and for `num_tokens` below 1.
        """
        if num_tokens < 1:
            raise ConfigError(f"num_tokens must be at least 1, not {num_tokens}")
        limits = [min(num_tokens, self.generator.room(prompt)) for prompt in prompts]
        together = self._rounded(min(max(1, self.generator.rows // copies), len(prompts)), self.rules.parts("batch"))
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for first in range(0, len(order), together):
            numbers = order[first : first + together]
            # One that ends when another does keeps nobody waiting.
            filled = numbers + numbers[-1:] * (together - len(numbers))
            most = [limits[number] for number in filled]
            steps = self._rounded(max(most), LENGTH_STEP)
            yield Group(numbers, self._lay([prompts[number] for number in filled]), self._everywhere(most), steps)

    def read(self, weights: Weights, laid: Laid, steps: int, copies: int) -> Start:
        """To be called inside a jitted function: the prompts, with room for `steps` tokens behind them."""
        rows, length = laid.tokens_PL.shape
        reads = 0 if laid.read_PS is None else laid.read_PS[0].shape[1]
        piece = length if self.form.both_ways else min(length, program.PIECE)
        short = -length % piece
        cache = self.caches.empty(rows, length + short, reads)
        if laid.read_PS is not None:
            cache = self.forward.read(weights, *laid.read_PS, cache)
        columns = (
            jnp.pad(laid.tokens_PL, ((0, 0), (0, short))),
            jnp.pad(laid.positions_PL, ((0, 0), (0, short)), constant_values=-1),
        )
        padded = reshard(columns, self.rules("batch", None))
        x_PLD, cache = self._pieces(weights, padded, cache, piece)
        last_PD = x_PLD.at[jnp.arange(rows), laid.lengths_P - 1].get(out_sharding=self.rules("batch", None))
        source_B = jnp.repeat(jnp.arange(rows, dtype=jnp.int32), copies)
        slots = self._rounded(length + steps, LENGTH_STEP)
        empty = self.caches.empty(rows * copies, slots, reads)
        return Start(self.caches.seat(empty, cache, source_B, laid.lengths_P), self.logits(weights, last_PD), x_PLD)

    def logits(self, weights: Weights, x_BD: Array) -> Array:
        """fp32 [B, V] on every device; what is never written has -inf."""
        x_B1D = reshard(x_BD[:, None], self.rules("batch", None, None))
        return self.generator.program.writable(self.forward.logits(weights, x_B1D))[:, 0]

    def extend(self, weights: Weights, token_B: Array, at_B: Array, cache: Cache) -> tuple[Array, Cache]:
        """What the last layer says of one more token of each row, [B, D] cut along the rows, and the cache with it."""
        token_B1, at_B1 = (reshard(row_B[:, None], self.rules("batch", None)) for row_B in (token_B, at_B))
        x_B1D, cache = self.forward.extend(weights, token_B1, at_B1, cache)
        return reshard(x_B1D, self.rules("batch", None, None))[:, 0], cache

    def _pieces(self, weights: Weights, padded: tuple[Array, Array], cache: Cache, piece: int) -> tuple[Array, Cache]:
        """The last layer's output of all columns, read `piece` of them at a time."""
        whole = self.rules("batch", None, None)
        count = padded[0].shape[1] // piece
        if count == 1:
            x_PLD, cache = self.forward.extend(weights, *padded, cache, self.form.both_ways)
            return reshard(x_PLD, whole), cache

        def more(cache: Cache, columns: tuple[Array, Array]) -> tuple[Cache, Array]:
            x_PLD, cache = self.forward.extend(weights, *columns, cache)
            return cache, reshard(x_PLD, whole)

        cut = self.rules(None, "batch", None)
        columns = [reshard(jnp.stack(jnp.split(rows_PL, count, axis=1)), cut) for rows_PL in padded]
        cache, x_NPLD = jax.lax.scan(more, cache, tuple(columns))
        return jnp.concatenate(list(x_NPLD), axis=1), cache

    def _lay(self, prompts: Sequence[Sequence[int]]) -> Laid:
        read = [self.form.read(prompt) for prompt in prompts]
        width = self._rounded(max(map(len, read)), LENGTH_STEP)
        tokens, positions = np.zeros((len(read), width), np.int32), np.full((len(read), width), -1, np.int32)
        for row, ids in enumerate(read):
            tokens[row, : len(ids)], positions[row, : len(ids)] = ids, np.arange(len(ids))
        if not self.form.encoder:
            return Laid(self._cut(tokens), self._cut(positions), self._everywhere(list(map(len, read))), None)
        begin = np.full((len(read), 1), self.form.begin or 0, np.int32)
        ones = self._everywhere([1] * len(read))
        return Laid(self._cut(begin), self._cut(0 * begin), ones, (self._cut(tokens), self._cut(positions)))

    def _everywhere(self, numbers: list[int]) -> Array:
        return jax.device_put(np.array(numbers, np.int32), self.rules(None))

    def _cut(self, rows: np.ndarray) -> Array:
        return jax.make_array_from_callback(rows.shape, self.rules("batch", None), lambda index: rows[index])

    @staticmethod
    def _rounded(length: int, step: int) -> int:
        return -(-length // step) * step
