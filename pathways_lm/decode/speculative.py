"""A small model writes ahead, the large one reads what it wrote at once and keeps what it would have written itself."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import reshard

from pathways_lm.compiler import compiler_options
from pathways_lm.decode.cache import Cache
from pathways_lm.decode.forward import Weights
from pathways_lm.decode.generate import Generator, Written
from pathways_lm.decode.program import State
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError

# Rounds between two looks of the host at what was written.
ROUNDS = 8


class Pair(NamedTuple):
    """Something of the model that decides and of the one that writes ahead."""

    target: Any
    draft: Any


class Speculator:
    """Continues prompts as `target` would, in distribution, in fewer of its steps.

    Source: Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318.

    Args:
      ahead: tokens that `draft` writes before `target` reads them.

    Raises:
      ConfigError: the two read prompts or end texts differently, or `ahead` is below 1.
    """

    def __init__(self, target: Generator, draft: Generator, ahead: int = 4):
        if ahead < 1:
            raise ConfigError(f"a draft must be at least 1 token ahead, not {ahead}")
        if target.form != draft.form:
            raise ConfigError("the draft model has another vocabulary, or reads prompts in another form")
        self.models, self.ahead = Pair(target, draft), ahead
        eight_bits = target.model.config.matmuls or draft.model.config.matmuls
        self._rounds = jax.jit(
            self._go_on,
            static_argnames="sampler",
            donate_argnames="states",
            compiler_options=compiler_options(target.model.rules.mesh, eight_bits, decodes=True),
        )

    def write(
        self, params: Pair, prompts: Sequence[Sequence[int]], sampler: Sampler, num_tokens: int, key: Array
    ) -> tuple[list[Written], float]:
        """Continues every prompt until the end or for `num_tokens`; and how many tokens a step of `target` gave.

        Log-probabilities are not told.

        Raises:
          ConfigError: the sampler looks back at what was written, or a prompt leaves no room in the context.
        """
        if sampler.looks_back:
            raise ConfigError(
                "penalties and no_repeat_ngram look at each token before the next: not with a draft model"
            )
        target = self.models.target
        room = [min(num_tokens, *(model.room(prompt) for model in self.models)) for prompt in prompts]
        weights = Pair(*(model.weights(own) for model, own in zip(self.models, params, strict=True)))
        written = [Written() for _ in prompts]
        steps = 0
        for first in range(0, len(prompts), target.rows):
            numbers = range(first, min(first + target.rows, len(prompts)))
            chosen, space = [prompts[n] for n in numbers], [room[n] for n in numbers]
            held, target_state = self._seated(target, weights.target, chosen, space, sampler)
            states = Pair(target_state, self._seated(self.models.draft, weights.draft, chosen, space, sampler)[1])
            while True:
                states, tokens, left = self._rounds(weights, states, key, np.int32(first), sampler=sampler)
                steps += int(np.sum(np.any(np.asarray(tokens) >= 0, axis=2)))
                for row, number in enumerate(held):
                    if number is not None and number >= 0:
                        self._add(written[first + number], np.asarray(tokens)[row].ravel(), int(left[row]))
                if not np.any(left):
                    break
        total = sum(len(one.tokens) + (one.why == "end") for one in written)
        return written, total / max(steps, 1)

    def _seated(
        self, model: Generator, weights: Weights, prompts: Sequence[Sequence[int]], room: list[int], sampler: Sampler
    ) -> tuple[list[int | None], State]:
        """Which prompt each row has (-1: none), both models alike, and the rows."""
        # What is not kept leaves its slots empty: in the worst case all of a round but one.
        state, rows = model.begin(prompts, room, sampler, slots_each=self.ahead + 1)
        held: list[int | None] = [None if row < len(prompts) else -1 for row in range(rows)]
        waiting = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        state = model.fill(weights, state, held, waiting, prompts, room)
        return held, state

    def _add(self, written: Written, tokens: np.ndarray, left: int) -> None:
        if written.why:
            return
        new = tokens[tokens >= 0].tolist()
        if self.models.target.form.end in new:
            new = new[: new.index(self.models.target.form.end)]
            written.why = "end"
        elif left == 0:
            written.why = "length"
        written.tokens += new

    def _go_on(self, weights: Pair, states: Pair, key: Array, first: Array, sampler: Sampler) -> Any:
        """Up to `ROUNDS` rounds: the states, tokens [B, rounds, ahead + 1] with -1 for none, and what is left."""
        rules = self.models.target.model.rules
        rows = states.target.left_B.shape[0]
        out = reshard(jnp.full((rows, ROUNDS, self.ahead + 1), -1, jnp.int32), rules(None, None, None))

        def more(carry: Any) -> Array:
            states, _, count = carry
            return (count < ROUNDS) & jnp.any(states.target.left_B > 0)

        def step(carry: Any) -> Any:
            states, out, count = carry
            states, tokens_BA = self._round(weights, states, key, first, sampler)
            return states, jax.lax.dynamic_update_slice_in_dim(out, tokens_BA[:, None], count, axis=1), count + 1

        start = reshard(jnp.zeros((), jnp.int32), rules())
        states, out, _ = jax.lax.while_loop(more, step, (states, out, start))
        return states, out, states.target.left_B

    def _round(self, weights: Pair, states: Pair, key: Array, first: Array, sampler: Sampler) -> tuple[Pair, Array]:
        """The draft's tokens, how many of them stay, and the one behind them."""
        target, draft = self.models
        state, A = states.target, self.ahead
        on_B, at_B = state.left_B > 0, state.at_B
        rules = target.model.rules

        def keys(position_B: Array, use: int) -> Array:
            def one(number: Array, position: Array) -> Array:
                return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, number), position), use)

            return jax.vmap(one)(state.number_B + first, position_B)

        def place(tokens_BL: Array, offset: int) -> tuple[Array, Array]:
            length = tokens_BL.shape[1]
            positions_BL = jnp.where(on_B[:, None], at_B[:, None] + offset + jnp.arange(length), -1)
            return reshard(tokens_BL, rules("batch", None)), reshard(positions_BL, rules("batch", None))

        cache, token_B, drafted, chances = states.draft.cache, state.token_B, [], []
        for step in range(A + 1):
            x_BLD, cache = draft.forward.extend(weights.draft, *place(token_B[:, None], step), cache)
            if step == A:
                break  # the last token, too, has its keys and values now
            logits_BV = draft.program.writable(draft.forward.logits(weights.draft, x_BLD))[:, 0]
            chances.append(_chances(sampler, logits_BV))
            token_B = sampler.choose(logits_BV, keys(at_B + step + 1, 0))
            drafted.append(token_B)
        drafted_BA = jnp.stack(drafted, axis=1)
        read_BL = jnp.concatenate([state.token_B[:, None], drafted_BA], axis=1)
        x_BLD, own = target.forward.extend(weights.target, *place(read_BL, 0), state.cache)
        logits_BLV = target.program.writable(target.forward.logits(weights.target, x_BLD))
        wanted_BLV = jnp.stack([_chances(sampler, logits_BLV[:, index]) for index in range(A + 1)], axis=1)
        tokens_BA, kept_B = accept(wanted_BLV, jnp.stack(chances, axis=1), drafted_BA, keys(at_B, 1))

        # Behind the end, and beyond what may be written, is nothing.
        ended_BA = jnp.cumsum(tokens_BA == target.form.end, axis=1) - (tokens_BA == target.form.end) > 0
        index_1A = jnp.arange(A + 1)[None]
        said_BA = on_B[:, None] & (index_1A <= kept_B[:, None]) & ~ended_BA & (index_1A < state.left_B[:, None])
        has_ended_B = jnp.any(said_BA & (tokens_BA == target.form.end), axis=1)
        left_B = jnp.where(on_B & ~has_ended_B, state.left_B - jnp.sum(said_BA, axis=1), 0)
        last_B = jnp.where(on_B, jnp.take_along_axis(tokens_BA, kept_B[:, None], axis=1)[:, 0], state.token_B)
        at_B = jnp.where(on_B, at_B + kept_B + 1, at_B)

        def after(state: State, cache: Cache) -> State:
            cache = _forget(cache, at_B, A + 1, rules)
            return state._replace(cache=cache, token_B=last_B, at_B=at_B, left_B=left_B)

        return Pair(after(state, own), after(states.draft, cache)), jnp.where(said_BA, tokens_BA, -1)


def accept(wanted_BLV: Array, drafted_BAV: Array, tokens_BA: Array, keys_B: Array) -> tuple[Array, Array]:
    """Which of the draft's tokens stay, and the token behind them (arXiv:2211.17192, algorithm 1).

    Args:
      wanted_BLV: the target's distributions of the `A` drafted tokens and of the next, L = A + 1.
      drafted_BAV: the draft's distributions, from which `tokens_BA` were drawn.

    Returns:
      Tokens int32 [B, A + 1], which count up to and with index `kept`, and `kept` int32 [B].
    """
    A, V = tokens_BA.shape[1], wanted_BLV.shape[-1]

    def one(wanted_LV: Array, drafted_AV: Array, tokens_A: Array, key: Array) -> tuple[Array, Array]:
        coins, last = jax.random.split(key)
        ask = jnp.arange(A)
        ratio_A = wanted_LV[ask, tokens_A] / jnp.maximum(drafted_AV[ask, tokens_A], jnp.finfo(jnp.float32).tiny)
        stays_A = jax.random.uniform(coins, (A,)) < ratio_A
        kept = jnp.sum(jnp.cumprod(stays_A))
        # Behind the last that stays: what the target wants more than the draft, and after all of them what it wants.
        none_1V = jnp.zeros((1, V), drafted_AV.dtype)
        rest_V = jnp.maximum(wanted_LV[kept] - jnp.concatenate([drafted_AV, none_1V])[kept], 0)
        # Where the two are the same but for rounding, nothing is left, and nothing of it is ever drawn.
        rest_V = jnp.where(jnp.sum(rest_V) > 0, rest_V, wanted_LV[kept])
        following = jax.random.categorical(last, jnp.log(rest_V)).astype(jnp.int32)
        tokens_L = jnp.append(tokens_A, 0)
        return jnp.where(jnp.arange(A + 1) == kept, following, tokens_L), kept.astype(jnp.int32)

    return jax.vmap(one)(wanted_BLV, drafted_BAV, tokens_BA, keys_B)


def _chances(sampler: Sampler, logits_BV: Array) -> Array:
    """The probabilities that are drawn from, fp32 [B, V]."""
    if sampler.temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits_BV, axis=-1), logits_BV.shape[-1])
    return jax.nn.softmax(sampler.logits(logits_BV), axis=-1)


def _forget(cache: Cache, next_B: Array, written: int, rules: Any) -> Cache:
    """Empties those of the slots `written` last that hold positions from `next_B` on."""
    slots = cache.positions_BS.shape[1]
    age_S = jnp.mod(cache.used - 1 - jnp.arange(slots), slots)
    from_B1 = reshard(next_B[:, None], rules("batch", None))
    gone_BS = (age_S < written)[None] & (cache.positions_BS >= from_B1)
    return cache._replace(positions_BS=jnp.where(gone_BS, -1, cache.positions_BS))
