"""Writing text: a prompt at once, then token by token."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import reshard

from pathways_lm.compiler import compiler_options
from pathways_lm.decode.cache import Cache, empty, shardings, write
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.models.model import Model, Params

BEGINNING = 0
# Prompts are padded to a multiple of this, so that few lengths are compiled.
PROMPT_STEP = 32


class Generator:
    """Continues prompts with one model. Functions are compiled for each shape once and kept.

    Args:
      model: layout and mesh; the batch is filled up to what the mesh needs.
      vocabulary_size: pieces of the vocabulary. The model may have more rows; they are never drawn.
      end: the token that ends a document, and with it a continuation.
      context: most tokens of a sequence, prompt and continuation together.

    Raises:
      ConfigError: the model is not a decoder.
    """

    def __init__(self, model: Model, vocabulary_size: int, end: int, context: int):
        if model.config.shape != "decoder":
            raise ConfigError(f"model.shape='{model.config.shape}' cannot continue a prompt; a 'decoder' can")
        # Tokens come one at a time, and prompts in any length.
        self.model = model = model.with_whole_sequences()
        self.vocabulary_size = vocabulary_size
        self.end = end
        self.context = context
        # JAX 0.12 forgets where arrays lie on a mesh of one device when they leave a compiled function, unless told.
        rules = model.rules
        out = (rules("batch"), rules("batch", None), shardings(model.config, rules))
        jit = partial(jax.jit, out_shardings=out, compiler_options=compiler_options(rules.mesh))
        self._prefill = jit(self._start, static_argnames=("slots", "sampler"))
        self._step = jit(self._extend, static_argnames="sampler", donate_argnames="cache")

    def stream(
        self, params: Params, prompts: Sequence[Sequence[int]], sampler: Sampler, num_tokens: int, key: Array
    ) -> Iterator[np.ndarray]:
        """Yields the next token of every prompt, int32 [number of prompts], until all have ended.

        A sequence that has ended goes on yielding `end`.

        Raises:
          ConfigError: a prompt leaves no room in the context.
        """
        num_tokens = min(num_tokens, self.room(prompts))
        tokens, positions = self._batch(prompts)
        slots = -(-(tokens.shape[1] + num_tokens) // PROMPT_STEP) * PROMPT_STEP
        chosen, at, cache = self._prefill(params, tokens, positions, key, slots=slots, sampler=sampler)
        ended = np.zeros(len(prompts), bool)
        for index in range(num_tokens):
            previous = chosen
            if index + 1 < num_tokens:
                # The device is at the next step while this one is read and shown.
                chosen, at, cache = self._step(params, previous, at, cache, key, sampler=sampler)
            step = np.where(ended, self.end, np.asarray(_local(previous))[: len(prompts)])
            ended |= step == self.end
            yield step
            if ended.all():
                return

    def room(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many tokens the longest prompt leaves in the context. Raises ConfigError where it is none."""
        longest = max(len(prompt) for prompt in prompts)
        # One slot is the beginning's.
        room = self.context - longest - 1
        if room < 1:
            raise ConfigError(
                f"prompt of {longest} tokens is longer than the context: "
                f"at most {self.context - 2} fit before the first new token"
            )
        return room

    def _batch(self, prompts: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Prompts behind their beginning, set flush right, with their positions; [B, T] each."""
        rows = -(-len(prompts) // self.model.rules.parts("batch")) * self.model.rules.parts("batch")
        width = -(-(max(len(prompt) for prompt in prompts) + 1) // PROMPT_STEP) * PROMPT_STEP
        tokens, positions = np.zeros((rows, width), np.int32), np.full((rows, width), -1, np.int32)
        for row in range(rows):
            sequence = [BEGINNING, *prompts[min(row, len(prompts) - 1)]]
            tokens[row, -len(sequence) :] = sequence
            positions[row, -len(sequence) :] = np.arange(len(sequence))
        placed = self.model.rules("batch", None)
        place = partial(jax.make_array_from_callback, tokens.shape, placed)
        return place(lambda index: tokens[index]), place(lambda index: positions[index])

    def _start(
        self, params: Params, tokens: Array, positions: Array, key: Array, slots: int, sampler: Sampler
    ) -> tuple[Array, Array, Cache]:
        config, rules = self.model.config, self.model.rules
        rows = tokens.shape[0]
        dtype = params["embedding"]["table"].dtype
        nothing = empty(config, rows, 0, dtype, rules)
        logits, fresh = self.model.bind(params).extend(
            tokens, positions, (nothing.keys, nothing.values), nothing.positions
        )
        cache = write(empty(config, rows, slots, dtype, rules), fresh, positions)
        at = positions[:, -1:] + 1
        return self._choose(logits, at, key, sampler), at, cache

    def _extend(
        self, params: Params, previous_B: Array, at_B1: Array, cache: Cache, key: Array, sampler: Sampler
    ) -> tuple[Array, Array, Cache]:
        logits, fresh = self.model.bind(params).extend(
            previous_B[:, None], at_B1, (cache.keys, cache.values), cache.positions
        )
        return self._choose(logits, at_B1 + 1, key, sampler), at_B1 + 1, write(cache, fresh, at_B1)

    def _choose(self, logits_BLV: Array, at_B1: Array, key: Array, sampler: Sampler) -> Array:
        """Draws the token that stands at `at_B1`. Rows beyond the vocabulary and padding are never drawn."""
        logits_BV = reshard(logits_BLV[:, -1], self.model.rules(None, None))
        ids = jnp.arange(logits_BV.shape[-1])
        logits_BV = jnp.where((ids == BEGINNING) | (ids >= self.vocabulary_size), -jnp.inf, logits_BV)
        # A draw depends on its row and position alone, not on what else is in the batch.
        at_B = reshard(at_B1[:, 0], self.model.rules(None))
        fold = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))
        chosen_B = sampler.choose(logits_BV, fold(jnp.arange(at_B.shape[0]), at_B))
        return reshard(chosen_B, self.model.rules("batch"))


def _local(array: Array) -> np.ndarray:
    """The whole of a small array, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
