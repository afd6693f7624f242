"""Beam search: of all continuations, those that are likely as a whole."""

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

# By what a sum of log-probabilities is divided is ((a + length) / b) ** length_penalty.
FORMS = {"length": (0.0, 1.0), "gnmt": (5.0, 6.0)}


@dataclass(frozen=True)
class Beams:
    """How hypotheses are searched and ranked.

    Of each prompt `num_beams` hypotheses go on. With a step, each is tried with every token; the `num_beams` best of
    all these that end are kept apart, the best that do not end go on.

    Source: length penalty, GNMT (arXiv:1609.08144, equation 14); groups, diverse beam search (arXiv:1610.02424,
    algorithm 1, with Hamming diversity).
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    """alpha: 0 ranks by the sum of log-probabilities, more favours longer hypotheses."""
    form: str = "length"
    """What is raised to alpha: `length`, the number of new tokens with the end; `gnmt`, (5 + length) / 6 (T5's)."""
    groups: int = 1
    """Beams are dealt to as many groups, which are searched one after the other in each step."""
    diversity: float = 0.0
    """Taken off a hypothesis' log-probability for each beam of an earlier group that goes on with the same token."""
    early_stopping: bool = False
    """A search ends with the first `num_beams` hypotheses that end. False: not before the likeliest that goes on,
    as long as it is now, ranks below all of them."""
    num_return: int = 1
    """The best hypotheses of a prompt that are returned."""

    def __post_init__(self) -> None:
        self._check("num_beams", self.num_beams >= 1, "1 or above")
        self._check("length_penalty", abs(self.length_penalty) < float("inf"), "a number")
        self._check("form", self.form in FORMS, " or ".join(f"'{name}'" for name in FORMS))
        self._check(
            "groups", self.groups >= 1 and self.num_beams % self.groups == 0, f"a divisor of num_beams={self.num_beams}"
        )
        self._check("diversity", 0 <= self.diversity < float("inf"), "0 or above")
        self._check("diversity", self.groups > 1 or self.diversity == 0, "0 where groups is 1")
        self._check("num_return", 1 <= self.num_return <= self.num_beams, f"from 1 to num_beams={self.num_beams}")

    def _check(self, name: str, right: bool, what: str) -> None:
        if not right:
            raise ConfigError(f"{name} must be {what}, not {getattr(self, name)!r}")


@dataclass
class Hypothesis(Written):
    """What a search found for a prompt."""

    score: float = 0.0
    """What it was ranked by: the sum of log-probabilities, the end's included, less what diversity took, divided by
    the length penalty."""


class Ranking(NamedTuple):
    """What of `Beams` a compiled search is given as numbers."""

    alpha: Array
    offset: Array
    scale: Array
    diversity: Array
    early: Array

    def penalty(self, length: Array) -> Array:
        """What scores of hypotheses of `length` new tokens are divided by."""
        return ((self.offset + length) / self.scale) ** self.alpha


class Texts(NamedTuple):
    """Hypotheses: `K` of each group `G` of each prompt `P`, with room for `T` new tokens."""

    score_PGK: Array
    """fp32, -inf where there is none. Of those that go on a sum; of those that have ended as they are ranked."""
    tokens_PGKT: Array
    log_probs_PGKT: Array
    """By the model itself."""
    length_PGK: Array
    ended_PGK: Array
    """Whether the last token is the end."""

    def pick(self, index_PGK: Array) -> "Texts":
        """Those of each group in another order, or fewer."""
        return Texts(*(_pick(leaf, index_PGK) for leaf in self))


class Search(NamedTuple):
    """Everything but the cache is whole on every device."""

    cache: Cache
    """Row (p G + g) K + k is of beam k of group g of prompt p."""
    logits_RV: Array
    """fp32: of the next token of each row."""
    running: Texts
    """The likeliest that go on, in this order."""
    best: Texts
    """The best that have ended, in this order."""
    done_PG: Array
    turn: Array
    """Steps taken."""


class BeamSearch:
    """Searches with the model of a `Generator`. Functions are compiled for each number of beams and shape once."""

    def __init__(self, generator: Generator):
        self.generator, self.reader = generator, Reader(generator)
        whole: Any = generator.model.rules()
        self._searched = generator._jit(
            self._search, out_shardings=whole, static_argnames=("num_beams", "groups", "steps")
        )

    def search(
        self, params: Params, prompts: Sequence[Sequence[int]], beams: Beams, num_tokens: int
    ) -> list[list[Hypothesis]]:
        """The `beams.num_return` best continuations of each prompt, the best first, up to the end or of `num_tokens`.

        Those of a search in groups are the best of all groups together.

        Raises:
          ConfigError: more beams than ids that may be written, or a prompt that leaves no room in the context.
        """
        if beams.num_beams > self.reader.writable:
            raise ConfigError(
                f"num_beams must be at most {self.reader.writable}, the ids that may be written, not {beams.num_beams}"
            )
        weights = self.generator.weights(params)
        ranking = self._ranking(beams)
        found: list[list[Hypothesis]] = [[] for _ in prompts]
        for group in self.reader.groups(prompts, num_tokens, beams.num_beams):
            best = self._searched(
                weights,
                group.laid,
                group.limits_P,
                ranking,
                num_beams=beams.num_beams,
                groups=beams.groups,
                steps=group.steps,
            )
            texts = list(map(on_host, best))
            for row, number in enumerate(group.numbers):
                found[number] = _hypotheses(texts, row)[: beams.num_return]
        return found

    def _ranking(self, beams: Beams) -> Ranking:
        numbers = (beams.length_penalty, *FORMS[beams.form], beams.diversity)
        whole = self.reader.rules()
        alpha, offset, scale, diversity = (jax.device_put(np.float32(number), whole) for number in numbers)
        return Ranking(alpha, offset, scale, diversity, jax.device_put(np.bool_(beams.early_stopping), whole))

    def _search(
        self,
        weights: Weights,
        laid: Laid,
        limits_P: Array,
        ranking: Ranking,
        num_beams: int,
        groups: int,
        steps: int,
    ) -> Texts:
        """Reads the prompts and searches until all groups are done; the hypotheses that have ended."""
        P, K = laid.tokens_PL.shape[0], num_beams // groups
        start = self.reader.read(weights, laid, steps, num_beams)
        whole = partial(jax.tree.map, lambda leaf: reshard(leaf, self.reader.rules(*[None] * leaf.ndim)))
        at_PGK, none_PGK = (P, groups, K), jnp.full((P, groups, K), -jnp.inf)
        nothing = Texts(
            none_PGK,
            jnp.zeros((*at_PGK, steps), jnp.int32),
            jnp.zeros((*at_PGK, steps)),
            jnp.zeros(at_PGK, jnp.int32),
            jnp.zeros(at_PGK, bool),
        )
        # All beams of a group begin alike: its first one stands for them.
        first = nothing._replace(score_PGK=none_PGK.at[:, :, 0].set(0))
        state = Search(
            start.cache,
            whole(jnp.repeat(start.logits_PV, num_beams, axis=0)),
            whole(first),
            whole(nothing),
            whole(jnp.zeros((P, groups), bool)),
            whole(jnp.zeros((), jnp.int32)),
        )
        step = partial(self._step, weights, ranking, laid.lengths_P, limits_P, whole)
        return jax.lax.while_loop(lambda state: ~jnp.all(state.done_PG), step, state).best

    def _step(
        self, weights: Weights, ranking: Ranking, lengths_P: Array, limits_P: Array, whole: Any, state: Search
    ) -> Search:
        P, G, K = state.running.score_PGK.shape
        length = state.turn + 1
        tried, from_PGC, on_PGK = self._try(state, ranking.diversity)
        running, from_PGK = tried.pick(on_PGK), _pick(from_PGC, on_PGK)
        # Where fewer go on than there are beams, what has ended does not.
        running = running._replace(score_PGK=jnp.where(running.ended_PGK, -jnp.inf, running.score_PGK))
        full_P11 = (length >= limits_P)[:, None, None]
        # As many as there are beams may end; the others that were tried only make sure that as many can go on.
        ends_PGC = (tried.ended_PGK | full_P11)[..., :K] & ~state.done_PG[..., None]
        ended = jax.tree.map(lambda leaf: leaf[:, :, :K], tried)
        ranked_PGK = jnp.where(ends_PGC, ended.score_PGK / ranking.penalty(length), -jnp.inf)
        both = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new], axis=2), state.best, ended._replace(score_PGK=ranked_PGK)
        )
        best = both.pick(jax.lax.top_k(both.score_PGK, K)[1])
        # Longer, the likeliest that goes on may rank higher than now, but where it ranks below all it is given up.
        worst_PG, possible_PG = best.score_PGK[..., -1], running.score_PGK[..., 0] / ranking.penalty(length)
        done_PG = state.done_PG | (possible_PG <= worst_PG) | full_P11[..., 0]
        done_PG |= ranking.early & (worst_PG > -jnp.inf)

        beam_PGK = jnp.arange(P * G, dtype=jnp.int32).reshape(P, G, 1) * K + from_PGK
        cache = self.reader.caches.follow(state.cache, beam_PGK.reshape(-1), 0, running.tokens_PGKT.shape[-1])
        token_PGK = _at(running.tokens_PGKT, state.turn)
        at_PG1 = jnp.where(done_PG, -1, (lengths_P + state.turn)[:, None])[..., None]
        at_PGK = jnp.broadcast_to(at_PG1, token_PGK.shape)
        x_RD, cache = self.reader.extend(weights, token_PGK.reshape(-1), at_PGK.reshape(-1), cache)
        logits_RV = self.reader.logits(weights, x_RD)
        running, best, done_PG = whole((running, best, done_PG))
        return Search(cache, logits_RV, running, best, done_PG, length)

    def _try(self, state: Search, diversity: Array) -> tuple[Texts, Array, Array]:
        """The `2 K` likeliest hypotheses of each group that are a token longer, of which at least `K` do not end.

        Returns them, which of the running ones they continue, and the indices of the `K` that go on.
        """
        P, G, K = state.running.score_PGK.shape
        log_probs_PGKV = jax.nn.log_softmax(state.logits_RV, axis=-1).reshape(P, G, K, -1)
        V = log_probs_PGKV.shape[-1]
        taken_PV = jnp.zeros((P, V))
        found = []
        for group in range(G):
            score_PKV = state.running.score_PGK[:, group, :, None] + log_probs_PGKV[:, group]
            score_PKV -= diversity * taken_PV[:, None]
            score_PC, index_PC = jax.lax.top_k(score_PKV.reshape(P, K * V), 2 * K)
            from_PC, token_PC = index_PC // V, index_PC % V
            ends_PC = token_PC == self.generator.form.end
            on_PK = jax.lax.top_k(jnp.where(ends_PC, -jnp.inf, score_PC), K)[1]
            token_PK = jnp.take_along_axis(token_PC, on_PK, axis=1)
            same_PV = jnp.sum(jax.nn.one_hot(token_PK, V), axis=1)
            taken_PV += jnp.where(state.done_PG[:, group, None], 0, same_PV)
            found.append((score_PC, from_PC, token_PC, ends_PC, on_PK))
        parts = zip(*found, strict=True)
        score_PGC, from_PGC, token_PGC, ends_PGC, on_PGK = (jnp.stack(part, axis=1) for part in parts)
        before = state.running.pick(from_PGC)
        flat_PGKV = log_probs_PGKV.reshape(P, G, K * V)
        log_prob_PGC = _pick(flat_PGKV, from_PGC * V + token_PGC)
        tried = Texts(
            score_PGC,
            _put(before.tokens_PGKT, token_PGC, state.turn),
            _put(before.log_probs_PGKT, log_prob_PGC, state.turn),
            before.length_PGK + 1,
            ends_PGC,
        )
        return tried, from_PGC, on_PGK


def _pick(leaf_PGK: Array, index_PGC: Array) -> Array:
    """`leaf[p, g, index[p, g, c], ...]`"""
    index = index_PGC.reshape(*index_PGC.shape, *[1] * (leaf_PGK.ndim - 3))
    return jnp.take_along_axis(leaf_PGK, index, axis=2)


def _at(leaf_PGKT: Array, column: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(leaf_PGKT, column, axis=3, keepdims=False)


def _put(leaf_PGKT: Array, value_PGK: Array, column: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(leaf_PGKT, value_PGK[..., None], column, axis=3)


def _hypotheses(texts: Sequence[np.ndarray], row: int) -> list[Hypothesis]:
    """Those of a prompt, of all groups, the best first."""
    score_N, tokens_NT, log_probs_NT, length_N, ended_N = (leaf[row].reshape(-1, *leaf.shape[3:]) for leaf in texts)
    found = []
    for index in np.argsort(-score_N, kind="stable"):
        if score_N[index] > -np.inf:
            keep = int(length_N[index]) - bool(ended_N[index])
            tokens, log_probs = tokens_NT[index, :keep].tolist(), log_probs_NT[index, :keep].tolist()
            found.append(Hypothesis(tokens, log_probs, "end" if ended_N[index] else "length", float(score_N[index])))
    return found
