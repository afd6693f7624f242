"""From logits to the next token."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.errors import ConfigError


class History(NamedTuple):
    """What a sequence has so far."""

    tokens_BT: Array
    """int32: prompt and continuation from the first column on; what is behind them does not matter."""
    length_B: Array
    """int32: how many."""
    written_B: Array
    """int32: how many of these are the continuation's."""


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. What it sets applies in the order of the fields.

    Source: repetition penalty, CTRL (arXiv:1909.05858, section 4.1); top-p, arXiv:1904.09751; typical,
    arXiv:2202.00666; min-p, arXiv:2407.01082.
    """

    repetition_penalty: float = 1.0
    """Logits of tokens of prompt and continuation are divided by it where positive, multiplied where negative."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the continuation has."""
    frequency_penalty: float = 0.0
    """The same for each time it has them."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens comes twice, prompt included; 0 lets them."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities add up to at least this."""
    min_p: float = 0.0
    """Keep tokens that are at least this times as likely as the likeliest."""
    typical_p: float = 1.0
    """As top-p with tokens in the order of how near their surprise is to the distribution's entropy."""

    def __post_init__(self) -> None:
        positive = 0 < self.repetition_penalty < float("inf")
        self._check("repetition_penalty", positive, "above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            self._check(name, abs(getattr(self, name)) < float("inf"), "a number")
        self._check("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 or above")
        self._check("temperature", 0 <= self.temperature < float("inf"), "0 or above")
        self._check("top_k", self.top_k >= 0, "0 or above")
        self._check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._check("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1")
        self._check("min_p", 0 <= self.min_p <= 1, "from 0 to 1")

    def _check(self, name: str, right: bool, what: str) -> None:
        if not right:
            raise ConfigError(f"{name} must be {what}, not {getattr(self, name)}")

    @property
    def looks_back(self) -> bool:
        """Whether it needs the history."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.no_repeat_ngram > 0
        )

    def logits(self, logits_BV: Array, history: History | None = None) -> Array:
        """fp32 logits of the distribution that is drawn from; tokens left out have -inf."""
        logits_BV = self.penalised(logits_BV.astype(jnp.float32), history)
        if self.temperature > 0:
            logits_BV = logits_BV / self.temperature
        if 0 < self.top_k < logits_BV.shape[-1]:
            smallest_B1 = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
        if self.top_p < 1:
            logits_BV = _fewest(logits_BV, -logits_BV, self.top_p)
        if self.min_p > 0:
            likeliest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
            logits_BV = jnp.where(logits_BV < likeliest_B1 + jnp.log(self.min_p), -jnp.inf, logits_BV)
        if self.typical_p < 1:
            logits_BV = _fewest(logits_BV, _atypical(logits_BV), self.typical_p)
        return logits_BV

    def penalised(self, logits_BV: Array, history: History | None) -> Array:
        """Logits after the penalties, before the temperature."""
        if not self.looks_back:
            return logits_BV
        assert history is not None
        columns_1T = jnp.arange(history.tokens_BT.shape[1])[None]
        has_BT = columns_1T < history.length_B[:, None]
        if self.repetition_penalty != 1:
            seen_BV = _counts(history.tokens_BT, has_BT, logits_BV) > 0
            penalty = self.repetition_penalty
            weaker_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
            logits_BV = jnp.where(seen_BV, weaker_BV, logits_BV)
        if self.presence_penalty or self.frequency_penalty:
            own_BT = has_BT & (columns_1T >= (history.length_B - history.written_B)[:, None])
            count_BV = _counts(history.tokens_BT, own_BT, logits_BV)
            logits_BV = logits_BV - self.presence_penalty * (count_BV > 0) - self.frequency_penalty * count_BV
        if self.no_repeat_ngram:
            logits_BV = jnp.where(_would_repeat(history, self.no_repeat_ngram, logits_BV), -jnp.inf, logits_BV)
        return logits_BV

    def choose(self, logits_BV: Array, keys_B: Array, history: History | None = None) -> Array:
        """The next token of each sequence, int32 [B], drawn with a key of its own."""
        if self.temperature == 0:
            return jnp.argmax(self.penalised(logits_BV.astype(jnp.float32), history), axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys_B, self.logits(logits_BV, history)).astype(jnp.int32)


def _fewest(logits_BV: Array, order_BV: Array, mass: float) -> Array:
    """Keeps the fewest tokens, the lowest in `order_BV` first, whose probabilities add up to `mass`."""
    by_order_BV = jnp.argsort(order_BV, axis=-1)
    probabilities_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), by_order_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The last that is kept decides; all that are as low as it stay.
    ordered_BV = jnp.take_along_axis(order_BV, by_order_BV, axis=-1)
    highest_B1 = jnp.max(jnp.where(before_BV < mass, ordered_BV, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(order_BV > highest_B1, -jnp.inf, logits_BV)


def _atypical(logits_BV: Array) -> Array:
    """|surprise - entropy| of each token, inf for those left out (arXiv:2202.00666, equation 5)."""
    log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    expected_BV = jnp.where(jnp.isfinite(log_BV), jnp.exp(log_BV) * log_BV, 0)
    entropy_B1 = -jnp.sum(expected_BV, axis=-1, keepdims=True)
    return jnp.where(jnp.isfinite(log_BV), jnp.abs(-log_BV - entropy_B1), jnp.inf)


def _counts(tokens_BT: Array, counted_BT: Array, like_BV: Array) -> Array:
    """How often each token of the vocabulary is among those counted, fp32 [B, V]."""

    def count(tokens_T: Array, counted_T: Array, like_V: Array) -> Array:
        return jnp.zeros_like(like_V).at[tokens_T].add(counted_T.astype(like_V.dtype))

    return jax.vmap(count)(tokens_BT, counted_BT, like_BV)


def _would_repeat(history: History, n: int, like_BV: Array) -> Array:
    """Whether a token would close a sequence of `n` that has been before, bool [B, V]."""
    T = history.tokens_BT.shape[1]

    def of_one(tokens_T: Array, length: Array, like_V: Array) -> Array:
        last = jnp.arange(n - 1) + length - (n - 1)
        begins_T = jnp.arange(T)
        # Places where the last n - 1 tokens stand once more, with a token behind them.
        same_T = begins_T + n <= length
        for offset in range(n - 1):
            same_T &= tokens_T[jnp.minimum(begins_T + offset, T - 1)] == tokens_T[jnp.maximum(last[offset], 0)]
        closing_T = tokens_T[jnp.minimum(begins_T + n - 1, T - 1)]
        return jnp.zeros_like(like_V).at[closing_T].add(same_T.astype(like_V.dtype)) > 0

    return jax.vmap(of_one)(history.tokens_BT, history.length_B, like_BV)
