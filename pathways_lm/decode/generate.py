"""Writing on: prompts are read, rows of a batch go on token by token, and who has ended makes room for the next."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.compiler import compiler_options
from pathways_lm.decode.cache import Cache
from pathways_lm.decode.constrained import Guide
from pathways_lm.decode.form import Form
from pathways_lm.decode.forward import Forward, Weights, one_by_one
from pathways_lm.decode.program import Program, State
from pathways_lm.decode.sampling import History, Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import platform
from pathways_lm.models.model import Model, Params

# Lengths are rounded up to a multiple of this, so that few are compiled.
LENGTH_STEP = 32
# Steps between two looks of the host at what was written.
STEPS = 32
ROWS = 32

Stopped = Callable[[Sequence[int]], int | None]
"""What a continuation has so far -> how many tokens of it to keep, where it is to stop there."""


@dataclass
class Written:
    """What was written after one prompt."""

    tokens: list[int] = field(default_factory=list)
    """Without the end."""
    log_probs: list[float] = field(default_factory=list)
    """Of each of `tokens`, by the model itself, whatever they were drawn from."""
    why: str = ""
    """What ended it: `end`, `stop`, `length`, or nothing yet."""


class Generator:
    """Continues prompts with one model. Functions are compiled for each shape once and kept.

    Tokens of experts are never dropped here, whatever capacity the model was trained with: what becomes of a sequence
    must not depend on its neighbours.

    Args:
      model: layout and mesh; rows are filled up to what the mesh needs.
      form: how prompts are given to it.
      context: most tokens of a sequence, prompt and continuation together.
      listed: see `Forward`; None does so on CPUs.
      rows: most sequences at a time.
      cache_dtype: in which keys and values are kept; None takes that of the parameters, on CPUs fp32: there XLA changes
        an array of 16 bits not in place, but copies it.

    Raises:
      ConfigError: the model is an encoder.
    """

    def __init__(
        self,
        model: Model,
        form: Form,
        context: int,
        listed: bool | None = None,
        rows: int = ROWS,
        cache_dtype: str | jnp.dtype | None = None,
    ):
        config = model.config
        if config.shape == "encoder":
            raise ConfigError("model.shape='encoder' cannot continue a prompt; a 'decoder' or 'encoder_decoder' can")
        if config.moe.num_experts:
            model = Model(replace(config, moe=replace(config.moe, dispatch="dropless")), model.rules, model.dtype)
        # Tokens come one at a time, and prompts in any length.
        self.model = model = model.with_whole_sequences()
        rules = model.rules
        if listed is None:
            listed = one_by_one(model, (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))
        default = jnp.float32 if platform(rules.mesh) == "cpu" else model.dtype
        self.forward = Forward(model, jnp.dtype(cache_dtype or default), listed)
        self.form, self.context, self.rows = form, context, rows
        self.caches = self.forward.caches
        self.program = Program(self.forward, form)
        options = compiler_options(rules.mesh, model.config.matmuls, decodes=True)
        self._jit = partial(jax.jit, compiler_options=options)
        placed = self.caches.shardings(form.encoder)
        sizes = ("batch", "slots", "read")
        self._empty = self._jit(self.caches.empty, out_shardings=placed, static_argnames=sizes)
        self._prefill = self._jit(self.program.read, out_shardings=placed, static_argnames=("slots", "reads"))
        # JAX 0.12 forgets where arrays lie on a mesh of one device when they leave a compiled function, unless told.
        whole: Any = rules()
        state = State(placed, whole, whole, whole, whole, whole)
        out = (state, whole, whole, whole, whole)
        self._seat = self._jit(self.program.take, out_shardings=state, donate_argnames="state")
        self._steps = self._jit(
            self.program.go_on, out_shardings=out, static_argnames=("sampler", "steps"), donate_argnames="state"
        )
        self._held: tuple[Params, Weights] | None = None

    def write(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        num_tokens: int,
        key: Array,
        stopped: Stopped | None = None,
        guides: Sequence[Guide] | None = None,
    ) -> list[Written]:
        """Continues every prompt until the end, where it is `stopped`, or for `num_tokens` at most.

        Args:
          guides: of each prompt, what its continuation may be.
        """
        written = [Written() for _ in prompts]
        for _ in self.finished(params, prompts, sampler, num_tokens, key, written, stopped, guides):
            pass
        return written

    def finished(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        num_tokens: int,
        key: Array,
        written: list[Written],
        stopped: Stopped | None = None,
        guides: Sequence[Guide] | None = None,
    ) -> Iterator[int]:
        """The same, into `written`; yields the number of each prompt when its continuation is done."""
        for number, tokens, log_probs in self.stream(params, prompts, sampler, num_tokens, key, STEPS, written, guides):
            one = written[number]
            one.tokens += tokens
            one.log_probs += log_probs
            keep = stopped(one.tokens) if stopped else None
            if keep is not None:
                one.tokens, one.log_probs, one.why = one.tokens[:keep], one.log_probs[:keep], "stop"
            if one.why:
                yield number

    def stream(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        num_tokens: int,
        key: Array,
        steps: int,
        written: list[Written],
        guides: Sequence[Guide] | None = None,
    ) -> Iterator[tuple[int, list[int], list[float]]]:
        """Yields (number of the prompt, its next tokens, their log-probabilities), at most `steps` tokens at a time.

        A prompt is done when `written` says why: that is set here at the end and at `num_tokens`, and looked at
        before each go. Prompts that are done from the start are left out; draws of the others do not change by that.

        Raises:
          ConfigError: a prompt leaves no room in the context, or is empty where something must be read.
        """
        room = [min(num_tokens, self.room(prompt)) for prompt in prompts]
        weights = self.weights(params)
        # Prompts of one width are read together; the longest first, as the last ones then leave few rows idle.
        waiting = [number for number in range(len(prompts)) if not written[number].why]
        waiting.sort(key=lambda number: -len(prompts[number]))
        if guides is not None:
            # What may come next is found out on the host, of each token.
            steps = 1
        state, rows = self.begin(prompts, room, sampler)
        held: list[int | None] = [None] * rows
        while True:
            for row, number in enumerate(held):
                if number is not None and written[number].why:
                    held[row] = None
            state = self.fill(weights, state, held, waiting, prompts, room)
            active = [row for row, number in enumerate(held) if number is not None]
            if not active:
                return
            going = np.array([number is not None for number in held])
            # Where others wait, the first that ends lets them in.
            limits = np.array([1 if waiting else len(active), steps], np.int32)
            allowed = None if guides is None else self._allowed([None if n is None else guides[n] for n in held])
            out = self._steps(weights, state, going, limits, key, allowed, sampler=sampler, steps=STEPS)
            state = out[0]
            for array in out[1:]:
                # All at once: each would otherwise be waited for by itself.
                array.copy_to_host_async()
            tokens_BS, log_probs_BS, left_B, count = (on_host(array) for array in out[1:])
            for row in active:
                number = held[row]
                assert number is not None
                new = tokens_BS[row, : int(count)].tolist()
                if self.form.end in new:
                    new = new[: new.index(self.form.end)]
                    written[number].why = "end"
                elif left_B[row] == 0:
                    new = [token for token in new if token >= 0]
                    written[number].why = "length"
                if guides is not None:
                    for token in new:
                        guides[number].take(token)
                yield number, new, log_probs_BS[row, : len(new)].tolist()

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens a prompt leaves in the context. Raises ConfigError where it is none."""
        read = len(self.form.read(prompt))
        if not read:
            raise ConfigError("the prompt is empty: this model needs a token to begin with")
        limit = self.context if self.form.encoder else self.context - 1
        if read > limit:
            raise ConfigError(
                f"prompt of {len(prompt)} tokens is longer than the context: "
                f"at most {limit - read + len(prompt)} fit before the first new token"
            )
        return self.context - 1 if self.form.encoder else self.context - read

    def _allowed(self, guides: Sequence[Guide | None]) -> np.ndarray:
        """Bool [B, V]"""
        allowed = np.zeros((len(guides), self.model.config.vocab_size), bool)
        for row, guide in enumerate(guides):
            if guide is not None:
                own = guide.allowed()
                allowed[row, : len(own)] = own
        return allowed

    def weights(self, params: Params) -> Weights:
        """Parameters as steps use them; those of the last call are kept."""
        if self._held is None or self._held[0] is not params:
            self._held = (params, self.forward.weights(params))
        return self._held[1]

    def begin(
        self, prompts: Sequence[Sequence[int]], room: Sequence[int], sampler: Sampler, slots_each: int = 1
    ) -> tuple[State, int]:
        """Rows without sequences, and how many; with `slots_each` slots for every token that is to be written."""
        parts = self.model.rules.parts("batch")
        rows = _rounded(min(self.rows, len(prompts)), parts)
        read = [len(self.form.read(prompt)) for prompt in prompts]
        encoder = self.form.encoder
        total = [space * slots_each + (1 if encoder else length) for space, length in zip(room, read, strict=True)]
        # Of what a window leaves behind nothing is kept: the newest takes the place of the oldest.
        needed = min(max(total, default=1), self.model.config.window * slots_each or self.context * slots_each)
        slots = _rounded(needed, LENGTH_STEP)
        reads = _rounded(max(read, default=1), LENGTH_STEP) if encoder else 0
        whole = self.model.rules(None)

        def zeros(dtype: Any = jnp.int32) -> Array:
            return jax.device_put(np.zeros(rows, dtype), whole)

        history = None
        if sampler.looks_back:
            longest = _rounded(max(total, default=1), LENGTH_STEP)
            tokens = jax.device_put(np.zeros((rows, longest), np.int32), self.model.rules(None, None))
            history = History(tokens, zeros(), zeros())
        cache = self._empty(batch=rows, slots=slots, read=reads)
        return State(cache, zeros(), zeros(), zeros(), zeros(), history), rows

    def fill(
        self,
        weights: Weights,
        state: State,
        held: list[int | None],
        waiting: list[int],
        prompts: Sequence[Sequence[int]],
        room: Sequence[int],
    ) -> State:
        """Gives free rows to those who wait, as many at a time as read a text of the same width."""
        parts = self.model.rules.parts("batch")
        while waiting and None in held:
            free = [row for row, number in enumerate(held) if number is None]
            width = self._width(prompts[waiting[0]])
            alike = [number for number in waiting[: len(free)] if self._width(prompts[number]) == width]
            # Powers of two, so that few numbers of rows are compiled.
            together = min(len(alike), max(parts, 2 ** (len(alike).bit_length() - 1)))
            taken, free = alike[:together], free[:together]
            del waiting[:together]
            fresh, lengths = self._prefilled(weights, [prompts[number] for number in taken], width, parts)
            source = np.full(len(held), -1, np.int32)
            facts = np.zeros((4, len(held)), np.int32)
            tokens = np.zeros((len(held), 0 if state.history is None else state.history.tokens_BT.shape[1]), np.int32)
            for index, (row, number) in enumerate(zip(free, taken, strict=True)):
                held[row], source[row] = number, index
                read = [self.form.begin or 0] if self.form.encoder else self.form.read(prompts[number])
                facts[:, row] = read[-1], len(read) - 1, room[number], number
                if state.history is not None:
                    tokens[row, : len(read)] = read
            state = self._seat(state, fresh, source, lengths, facts, tokens)
        return state

    def _width(self, prompt: Sequence[int]) -> int:
        """Columns in which a prompt is read; 0 where its only token is the one that steps begin with."""
        length = len(self.form.read(prompt)) - (0 if self.form.encoder or self.form.both_ways else 1)
        return _rounded(length, LENGTH_STEP)

    def _prefilled(
        self, weights: Weights, prompts: Sequence[Sequence[int]], width: int, parts: int
    ) -> tuple[Cache, np.ndarray]:
        """A cache of what prompts read before their last token, slots in order from 0, and how many are to be kept."""
        rows = _rounded(len(prompts), parts)
        tokens, positions = np.zeros((rows, width), np.int32), np.full((rows, width), -1, np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            read = self.form.read(prompt)
            # The last token is read by the first step. Who sees it from before it has to be told of it here, too.
            given = read if self.form.encoder or self.form.both_ways else read[:-1]
            tokens[row, : len(given)], positions[row, : len(given)] = given, np.arange(len(given))
            lengths[row] = 0 if self.form.encoder else len(read) - 1
        place = partial(jax.make_array_from_callback, tokens.shape, self.model.rules("batch", None))
        laid = place(lambda index: tokens[index]), place(lambda index: positions[index])
        if self.form.encoder:
            return self._prefill(weights, *laid, slots=0, reads=width), lengths
        return self._prefill(weights, *laid, slots=width, reads=0), lengths


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def on_host(array: Array) -> np.ndarray:
    """The whole of a small array, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
