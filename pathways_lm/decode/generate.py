"""Writing on: prompts are read, rows of a batch go on token by token, and who has ended makes room for the next."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import reshard

from pathways_lm.compiler import compiler_options
from pathways_lm.decode.cache import Cache
from pathways_lm.decode.form import Form
from pathways_lm.decode.forward import Forward, Weights
from pathways_lm.decode.sampling import History, Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.models.model import Model, Params

# Lengths are rounded up to a multiple of this, so that few are compiled.
LENGTH_STEP = 32
# Tokens of a prompt that are read at once.
PIECE = 512
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


class State(NamedTuple):
    """The rows of a batch. Everything but the cache is whole on every device."""

    cache: Cache
    token_B: Array
    """int32: the last token, which the cache does not have yet."""
    at_B: Array
    """int32: where it stands."""
    left_B: Array
    """int32: how many tokens may still be written; 0 is a row that is done."""
    number_B: Array
    """int32: of the prompt, which draws are folded with."""
    history: History | None


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
      cache_dtype: in which keys and values are kept; None takes that of the parameters.

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
        cache_dtype: jnp.dtype | None = None,
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
            listed = rules.mesh.devices.flat[0].platform == "cpu" and rules.parts("stage") == 1
        self.forward = Forward(model, listed)
        self.form, self.context, self.rows = form, context, rows
        self.caches = self.forward.caches(cache_dtype or model.dtype)
        options = compiler_options(rules.mesh)
        self._jit = partial(jax.jit, compiler_options=options)
        placed = self.caches.shardings(form.encoder)
        self._prefill = self._jit(self._read, out_shardings=placed, static_argnames=("slots", "reads"))
        # JAX 0.12 forgets where arrays lie on a mesh of one device when they leave a compiled function, unless told.
        whole: Any = rules()
        state = State(placed, whole, whole, whole, whole, whole)
        out = (state, whole, whole, whole, whole)
        self._seat = self._jit(self._take, out_shardings=state, donate_argnames="state")
        self._steps = self._jit(
            self._go_on, out_shardings=out, static_argnames=("sampler", "steps"), donate_argnames="state"
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
    ) -> list[Written]:
        """Continues every prompt until the end, where it is `stopped`, or for `num_tokens` at most."""
        written = [Written() for _ in prompts]
        for number, tokens, log_probs in self.stream(params, prompts, sampler, num_tokens, key, STEPS, written):
            one = written[number]
            one.tokens += tokens
            one.log_probs += log_probs
            keep = stopped(one.tokens) if stopped else None
            if keep is not None:
                one.tokens, one.log_probs, one.why = one.tokens[:keep], one.log_probs[:keep], "stop"
        return written

    def stream(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        num_tokens: int,
        key: Array,
        steps: int,
        written: list[Written],
    ) -> Iterator[tuple[int, list[int], list[float]]]:
        """Yields (number of the prompt, its next tokens, their log-probabilities), at most `steps` tokens at a time.

        A prompt is done when `written` says why: that is set here at the end and at `num_tokens`, and looked at
        before each go.

        Raises:
          ConfigError: a prompt leaves no room in the context, or is empty where something must be read.
        """
        room = [min(num_tokens, self.room(prompt)) for prompt in prompts]
        weights = self.weights(params)
        # Prompts of one width are read together; the longest first, as the last ones then leave few rows idle.
        waiting = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        state, rows = self._begin(prompts, room, sampler)
        held: list[int | None] = [None] * rows
        while True:
            for row, number in enumerate(held):
                if number is not None and written[number].why:
                    held[row] = None
            state = self._fill(weights, state, held, waiting, prompts, room)
            active = [row for row, number in enumerate(held) if number is not None]
            if not active:
                return
            going = np.array([number is not None for number in held])
            # Where others wait, the first that ends lets them in.
            enough = 1 if waiting else len(active)
            out = self._steps(
                weights, state, going, np.int32(enough), np.int32(steps), key, sampler=sampler, steps=STEPS
            )
            state = out[0]
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

    def weights(self, params: Params) -> Weights:
        """Parameters as steps use them, kept for the next call."""
        if self._held is None or self._held[0] is not params:
            self._held = (params, self.forward.weights(params))
        return self._held[1]

    def _begin(self, prompts: Sequence[Sequence[int]], room: Sequence[int], sampler: Sampler) -> tuple[State, int]:
        """Rows without sequences, and how many."""
        parts = self.model.rules.parts("batch")
        rows = _rounded(min(self.rows, len(prompts)), parts)
        read = [len(self.form.read(prompt)) for prompt in prompts]
        encoder = self.form.encoder
        total = [space + (1 if encoder else length) for space, length in zip(room, read, strict=True)]
        slots = _rounded(max(total, default=1), LENGTH_STEP)
        reads = _rounded(max(read, default=1), LENGTH_STEP) if encoder else 0
        whole = self.model.rules(None)

        def zeros(dtype: Any = jnp.int32) -> Array:
            return jax.device_put(np.zeros(rows, dtype), whole)

        history = None
        if sampler.looks_back:
            tokens = jax.device_put(np.zeros((rows, slots), np.int32), self.model.rules(None, None))
            history = History(tokens, zeros(), zeros())
        placed = self.caches.shardings(encoder)
        cache = self._jit(partial(self.caches.empty, rows, slots, reads), out_shardings=placed)()
        return State(cache, zeros(), zeros(), zeros(), zeros(), history), rows

    def _fill(
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

    def _read(self, weights: Weights, tokens: Array, positions: Array, slots: int, reads: int) -> Cache:
        rows = tokens.shape[0]
        if reads:
            return self.forward.read(weights, tokens, positions, self.caches.empty(rows, slots, reads))
        if not slots:
            return self.caches.empty(rows, slots)
        piece = slots if self.form.both_ways else PIECE
        if slots <= piece:
            return self.forward.begin(weights, tokens, positions, self.caches.empty(rows, 0), self.form.both_ways)

        def more(cache: Cache, piece: tuple[Array, Array]) -> tuple[Cache, None]:
            return self.forward.extend(weights, *piece, cache)[1], None

        short = -slots % piece
        padded = jnp.pad(tokens, ((0, 0), (0, short))), jnp.pad(positions, ((0, 0), (0, short)), constant_values=-1)
        cut = self.model.rules(None, "batch", None)
        pieces = [reshard(jnp.stack(jnp.split(rows_BL, (slots + short) // piece, axis=1)), cut) for rows_BL in padded]
        cache = self.caches.empty(rows, slots + short)
        return jax.lax.scan(more, cache, tuple(pieces))[0]

    def _take(self, state: State, fresh: Cache, source: Array, lengths: Array, facts: Array, tokens: Array) -> State:
        """Seats sequences that begin."""
        taken = source >= 0
        cache = self.caches.seat(state.cache, fresh, source, lengths)
        token, at, left, number = (
            jnp.where(taken, new, old)
            for new, old in zip(facts, (state.token_B, state.at_B, state.left_B, state.number_B), strict=True)
        )
        history = state.history
        if history is not None:
            history = History(
                jnp.where(taken[:, None], tokens, history.tokens_BT),
                jnp.where(taken, at + 1, history.length_B),
                jnp.where(taken, 0, history.written_B),
            )
        return State(cache, token, at, left, number, history)

    def _go_on(
        self,
        weights: Weights,
        state: State,
        going: Array,
        enough: Array,
        limit: Array,
        key: Array,
        sampler: Sampler,
        steps: int,
    ) -> tuple[State, Array, Array, Array, Array]:
        """Up to `limit` steps, fewer where `enough` of the rows that are `going` have ended.

        Returns the state, tokens and log-probabilities [B, steps], how many tokens each row may still write, and the
        number of steps taken. Rows that have ended before have token -1.
        """
        rules = self.model.rules
        rows = going.shape[0]
        state = state._replace(left_B=jnp.where(going, state.left_B, 0))
        out = (jnp.full((rows, steps), -1, jnp.int32), jnp.zeros((rows, steps), jnp.float32))
        out = tuple(reshard(array, rules(None, None)) for array in out)

        def more(carry: Any) -> Array:
            state, _, count = carry
            return (count < limit) & (jnp.sum(going & (state.left_B == 0)) < enough)

        def step(carry: Any) -> Any:
            state, (tokens, log_probs), count = carry
            state, log_prob_B, wrote_B = self._one(weights, state, key, sampler)
            tokens = jax.lax.dynamic_update_slice_in_dim(
                tokens, jnp.where(wrote_B, state.token_B, -1)[:, None], count, axis=1
            )
            log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, log_prob_B[:, None], count, axis=1)
            return state, (tokens, log_probs), count + 1

        start = reshard(jnp.zeros((), jnp.int32), rules())
        state, (tokens, log_probs), count = jax.lax.while_loop(more, step, (state, out, start))
        return state, tokens, log_probs, state.left_B, count

    def _one(self, weights: Weights, state: State, key: Array, sampler: Sampler) -> tuple[State, Array, Array]:
        """One step of all rows: the state, the log-probability of what was written, and which rows wrote."""
        rules = self.model.rules
        on = state.left_B > 0
        token_B1 = reshard(state.token_B[:, None], rules("batch", None))
        at_B1 = reshard(jnp.where(on, state.at_B, -1)[:, None], rules("batch", None))
        x_BLD, cache = self.forward.extend(weights, token_B1, at_B1, state.cache)
        logits_BV = reshard(self.forward.logits(weights, x_BLD)[:, -1], rules(None, None)).astype(jnp.float32)
        logits_BV = self.writable(logits_BV)
        # A draw depends on its prompt's number and its position alone, not on what else is in the batch.
        fold = jax.vmap(lambda number, at: jax.random.fold_in(jax.random.fold_in(key, number), at))
        chosen_B = sampler.choose(logits_BV, fold(state.number_B, state.at_B + 1), state.history)
        log_prob_B = jnp.sum(
            jnp.where(
                jnp.arange(logits_BV.shape[-1])[None] == chosen_B[:, None], jax.nn.log_softmax(logits_BV, axis=-1), 0
            ),
            axis=-1,
        )
        token_B = jnp.where(on, chosen_B, state.token_B)
        at_B = jnp.where(on, state.at_B + 1, state.at_B)
        left_B = jnp.where(on & (chosen_B != self.form.end), state.left_B - 1, 0)
        history = state.history
        if history is not None:
            columns = jnp.arange(history.tokens_BT.shape[1])[None]
            here_BT = on[:, None] & (columns == history.length_B[:, None])
            history = History(
                jnp.where(here_BT, chosen_B[:, None], history.tokens_BT), history.length_B + on, history.written_B + on
            )
        return State(cache, token_B, at_B, left_B, state.number_B, history), log_prob_B, on

    def writable(self, logits_BV: Array) -> Array:
        """Logits without rows of the model beyond the vocabulary, and what is never written."""
        ids = jnp.arange(logits_BV.shape[-1])
        out = ids >= self.form.size
        for token in self.form.never:
            out |= ids == token
        return jnp.where(out, -jnp.inf, logits_BV)


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def on_host(array: Array) -> np.ndarray:
    """The whole of a small array, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
