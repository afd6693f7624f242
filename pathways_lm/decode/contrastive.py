"""Contrastive search: likely tokens that do not make the text circle in itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import reshard

from pathways_lm.decode.cache import Cache
from pathways_lm.decode.forward import Weights
from pathways_lm.decode.generate import Generator, Written, on_host
from pathways_lm.decode.prompts import Laid, Reader
from pathways_lm.errors import ConfigError
from pathways_lm.models.model import Params


@dataclass(frozen=True)
class Contrastive:
    """How the next token is chosen: of the `top_k` likeliest the one with the highest (1 - alpha) p(v) - alpha max
    cos(h_v, h_j), where h are what the last layer says of it and of all tokens before it.

    Source: arXiv:2202.06417, equation 5.
    """

    alpha: float = 0.6
    """0 takes the likeliest token."""
    top_k: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be from 0 to 1, not {self.alpha}")
        if self.top_k < 1:
            raise ConfigError(f"top_k must be 1 or above, not {self.top_k}")


class Search(NamedTuple):
    """`K` rows of the cache for each of `P` prompts, for the candidates of the next token."""

    cache: Cache
    """Rows of a prompt are alike."""
    logits_PV: Array
    """fp32: of the next token."""
    x_PSD: Array
    """fp32, of length 1: what the last layer said of prompt and continuation; nothing where there is no token."""
    tokens_PT: Array
    log_probs_PT: Array
    length_P: Array
    """Tokens written, the end included."""
    done_P: Array
    turn: Array
    """Steps taken."""


class ContrastiveSearch:
    """Searches with the model of a `Generator`. Functions are compiled for each `top_k` and shape once.

    What a decoder reads is looked back at, the token that it begins with and the prompt; an encoder's text is not.
    """

    def __init__(self, generator: Generator):
        self.generator, self.reader = generator, Reader(generator)
        whole: Any = generator.model.rules()
        self._searched = generator._jit(self._search, out_shardings=whole, static_argnames=("top_k", "steps"))

    def write(
        self, params: Params, prompts: Sequence[Sequence[int]], contrastive: Contrastive, num_tokens: int
    ) -> list[Written]:
        """Continues every prompt until the end or for `num_tokens` at most.

        Raises:
          ConfigError: `top_k` is above the ids that may be written, or a prompt leaves no room in the context.
        """
        top_k, most = contrastive.top_k, self.reader.writable
        if top_k > most:
            raise ConfigError(f"top_k must be at most {most}, the ids that may be written, not {top_k}")
        weights, end = self.generator.weights(params), self.generator.form.end
        alpha = jax.device_put(np.float32(contrastive.alpha), self.reader.rules())
        written = [Written() for _ in prompts]
        for group in self.reader.groups(prompts, num_tokens, top_k):
            out = self._searched(weights, group.laid, group.limits_P, alpha, top_k=top_k, steps=group.steps)
            tokens_PT, log_probs_PT, length_P = map(on_host, out)
            for row, number in enumerate(group.numbers):
                ended = tokens_PT[row, length_P[row] - 1] == end
                keep = slice(length_P[row] - ended)
                why = "end" if ended else "length"
                written[number] = Written(tokens_PT[row, keep].tolist(), log_probs_PT[row, keep].tolist(), why)
        return written

    def _search(
        self, weights: Weights, laid: Laid, limits_P: Array, alpha: Array, top_k: int, steps: int
    ) -> tuple[Array, Array, Array]:
        """Tokens and log-probabilities [P, T], and how many were written with the end."""
        rules, (P, length) = self.reader.rules, laid.tokens_PL.shape
        start = self.reader.read(weights, laid, steps, top_k)
        whole = partial(jax.tree.map, lambda leaf: reshard(leaf, rules(*[None] * leaf.ndim)))
        x_PLD = jnp.where((laid.positions_PL >= 0)[..., None], _unit(start.x_PLD[:, :length]), 0)
        x_PSD = reshard(jnp.pad(x_PLD, ((0, 0), (0, steps), (0, 0))), rules("batch", None, None))
        tokens_PT, zeros_P = jnp.zeros((P, steps), jnp.int32), jnp.zeros(P, jnp.int32)
        rest = whole((tokens_PT, jnp.zeros((P, steps)), zeros_P, zeros_P > 0, jnp.zeros((), jnp.int32)))
        state = Search(start.cache, start.logits_PV, x_PSD, *rest)
        step = partial(self._step, weights, alpha, laid, limits_P, top_k)
        state = jax.lax.while_loop(lambda state: ~jnp.all(state.done_P), step, state)
        return state.tokens_PT, state.log_probs_PT, state.length_P

    def _step(self, weights: Weights, alpha: Array, laid: Laid, limits_P: Array, top_k: int, state: Search) -> Search:
        rules, P = self.reader.rules, state.done_P.shape[0]
        log_probs_PV = jax.nn.log_softmax(state.logits_PV, axis=-1)
        log_prob_PK, token_PK = jax.lax.top_k(log_probs_PV, top_k)
        at_P1 = jnp.where(state.done_P, -1, laid.lengths_P + state.turn)[:, None]
        at_PK = jnp.broadcast_to(at_P1, token_PK.shape)
        x_RD, cache = self.reader.extend(weights, token_PK.reshape(-1), at_PK.reshape(-1), state.cache)
        x_PKD = reshard(reshard(x_RD, rules(None, None)).reshape(P, top_k, -1), rules("batch", None, None))
        unit_PKD = _unit(x_PKD)
        # Slots without a token have cosine 0, which must not stand for them.
        slots = jnp.arange(state.x_PSD.shape[1])
        length = laid.tokens_PL.shape[1]
        has_PS = (slots < laid.lengths_P[:, None]) | ((slots >= length) & (slots < length + state.turn))
        cosine_PKS = reshard(jnp.einsum("pkd,psd->pks", unit_PKD, state.x_PSD), rules(None, None, None))
        alike_PK = jnp.max(jnp.where(has_PS[:, None], cosine_PKS, -jnp.inf), axis=-1)
        chosen_P = jnp.argmax((1 - alpha) * jnp.exp(log_prob_PK) - alpha * alike_PK, axis=-1).astype(jnp.int32)

        # The other candidates' rows become the chosen one's: they differ in the slot just written.
        source_PK = jnp.broadcast_to(
            jnp.arange(P, dtype=jnp.int32)[:, None] * top_k + chosen_P[:, None], token_PK.shape
        )
        cache = self.reader.caches.follow(cache, source_PK.reshape(-1), state.turn, 1)
        one_PK = jnp.arange(top_k) == chosen_P[:, None]
        token_P, log_prob_P = (jnp.sum(jnp.where(one_PK, leaf, 0), axis=1) for leaf in (token_PK, log_prob_PK))
        x_PD, unit_PD = (
            leaf.at[jnp.arange(P), chosen_P].get(out_sharding=rules("batch", None)) for leaf in (x_PKD, unit_PKD)
        )
        put = partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        on = ~state.done_P
        length_P = state.length_P + on
        return Search(
            cache,
            self.reader.logits(weights, x_PD),
            put(state.x_PSD, unit_PD[:, None], length + state.turn),
            put(state.tokens_PT, token_P[:, None], state.turn),
            put(state.log_probs_PT, log_prob_P[:, None], state.turn),
            length_P,
            state.done_P | (token_P == self.generator.form.end) | (length_P >= limits_P),
            state.turn + 1,
        )


def _unit(x: Array) -> Array:
    """fp32 of length 1."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
