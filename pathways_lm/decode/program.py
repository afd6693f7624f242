"""What devices do when rows of a batch are continued: read prompts, seat them, go on by steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import reshard

from pathways_lm.decode.cache import Cache
from pathways_lm.decode.form import Form
from pathways_lm.decode.forward import Forward, Weights
from pathways_lm.decode.sampling import History, Sampler

# Tokens of a prompt that are read at once.
PIECE = 512


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


class Program:
    """Pure functions of arrays, to be compiled.

    Args:
      forward: the model's way through a few tokens.
      form: how prompts are given to it.
    """

    def __init__(self, forward: Forward, form: Form):
        self.forward, self.form, self.rules = forward, form, forward.model.rules

    def read(self, weights: Weights, tokens: Array, positions: Array, slots: int, reads: int) -> Cache:
        """A cache of what prompts read, [R, W] tokens and their positions, -1 for padding.

        Args:
          slots: those of the cache, W of them where a decoder reads; with 0 nothing is read.
          reads: W where an encoder reads; the decoder's slots are empty then.
        """
        rows = tokens.shape[0]
        if reads:
            return self.forward.read(weights, tokens, positions, self.forward.caches.empty(rows, slots, reads))
        if not slots:
            return self.forward.caches.empty(rows, slots)
        piece = slots if self.form.both_ways else PIECE
        if slots <= piece:
            return self.forward.begin(
                weights, tokens, positions, self.forward.caches.empty(rows, 0), self.form.both_ways
            )

        def more(cache: Cache, piece: tuple[Array, Array]) -> tuple[Cache, None]:
            return self.forward.extend(weights, *piece, cache)[1], None

        short = -slots % piece
        padded = jnp.pad(tokens, ((0, 0), (0, short))), jnp.pad(positions, ((0, 0), (0, short)), constant_values=-1)
        cut = self.rules(None, "batch", None)
        pieces = [reshard(jnp.stack(jnp.split(rows_BL, (slots + short) // piece, axis=1)), cut) for rows_BL in padded]
        cache = self.forward.caches.empty(rows, slots + short)
        return jax.lax.scan(more, cache, tuple(pieces))[0]

    def take(self, state: State, fresh: Cache, source: Array, lengths: Array, facts: Array, tokens: Array) -> State:
        """Seats sequences that begin.

        Args:
          fresh, lengths: what `read` gave of `R` prompts, and how many tokens of each are kept.
          source: which of them each row gets; -1 keeps what it has.
          facts: [4, B]: the token that the first step reads, where it stands, how many may be written, the prompt's
            number.
          tokens: [B, T]: what the sampler looks back at.
        """
        taken = source >= 0
        cache = self.forward.caches.seat(state.cache, fresh, source, lengths)
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

    def go_on(
        self,
        weights: Weights,
        state: State,
        going: Array,
        limits: Array,
        key: Array,
        allowed_BV: Array | None,
        sampler: Sampler,
        steps: int,
    ) -> tuple[State, Array, Array, Array, Array]:
        """Up to `limits[1]` steps, fewer where `limits[0]` of the rows that are `going` have ended.

        Returns the state, tokens and log-probabilities [B, steps], how many tokens each row may still write, and the
        number of steps taken. Rows that have ended before have token -1.
        """
        rules, caches = self.rules, self.forward.caches
        rows = going.shape[0]
        state = state._replace(left_B=jnp.where(going, state.left_B, 0))
        out = (jnp.full((rows, steps), -1, jnp.int32), jnp.zeros((rows, steps), jnp.float32))
        out = tuple(reshard(array, rules(None, None)) for array in out)

        def more(carry: Any) -> Array:
            state, _, count = carry
            return (count < limits[1]) & (jnp.sum(going & (state.left_B == 0)) < limits[0])

        def step(carry: Any) -> Any:
            state, (tokens, log_probs), count = carry
            state = state._replace(cache=caches.whole(state.cache))
            state, log_prob_B, wrote_B = self._one(weights, state, key, allowed_BV, sampler)
            tokens = jax.lax.dynamic_update_slice_in_dim(
                tokens, jnp.where(wrote_B, state.token_B, -1)[:, None], count, axis=1
            )
            log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, log_prob_B[:, None], count, axis=1)
            return state._replace(cache=caches.narrow(state.cache)), (tokens, log_probs), count + 1

        start = reshard(jnp.zeros((), jnp.int32), rules())
        state = state._replace(cache=caches.narrow(state.cache))
        state, (tokens, log_probs), count = jax.lax.while_loop(more, step, (state, out, start))
        return state._replace(cache=caches.whole(state.cache)), tokens, log_probs, state.left_B, count

    def _one(
        self, weights: Weights, state: State, key: Array, allowed_BV: Array | None, sampler: Sampler
    ) -> tuple[State, Array, Array]:
        """One step of all rows: the state, the log-probability of what was written, and which rows wrote."""
        rules = self.rules
        on = state.left_B > 0
        token_B1 = reshard(state.token_B[:, None], rules("batch", None))
        at_B1 = reshard(jnp.where(on, state.at_B, -1)[:, None], rules("batch", None))
        x_BLD, cache = self.forward.extend(weights, token_B1, at_B1, state.cache)
        logits_BV = self.writable(self.forward.logits(weights, x_BLD))[:, 0]
        log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
        if allowed_BV is not None:
            logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
        # A draw depends on its prompt's number and its position alone, not on what else is in the batch.
        fold = jax.vmap(lambda number, at: jax.random.fold_in(jax.random.fold_in(key, number), at))
        chosen_B = sampler.choose(logits_BV, fold(state.number_B, state.at_B + 1), state.history)
        log_prob_B = jnp.take_along_axis(log_BV, chosen_B[:, None], axis=-1)[:, 0]
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

    def writable(self, logits_BLV: Array) -> Array:
        """fp32 logits, whole on every device; -inf for rows of the model beyond the vocabulary and what is never
        written."""
        whole_BLV = reshard(logits_BLV, self.rules(None, None, None)).astype(jnp.float32)
        if self.form.size == whole_BLV.shape[-1] and not self.form.never:
            return whole_BLV
        ids = jnp.arange(whole_BLV.shape[-1])
        out = ids >= self.form.size
        for token in self.form.never:
            out |= ids == token
        return jnp.where(out, -jnp.inf, whole_BLV)
