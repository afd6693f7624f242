"""The log-probability of every token that a model might say after what it reads."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.compiler import compiler_options
from pathways_lm.decode.form import BEGINNING, Form
from pathways_lm.errors import ConfigError, DataError
from pathways_lm.kernels.cross_entropy import cross_entropy
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, Params
from pathways_lm.train.precision import POLICIES

# Lengths are filled up to this, or a doubling of it: few programs are compiled.
SHORTEST = 32


class Window(NamedTuple):
    """Ids that are read and ids that are said after them. Each of `said` is scored."""

    read: Sequence[int]
    """All that stands before: with its beginning and what closes it (`Form.read`). Of a decoder not empty."""
    said: Sequence[int]


class Scored(NamedTuple):
    """What a model thinks of each token said."""

    log_probs: np.ndarray
    """fp32 [tokens], nats."""
    greedy: np.ndarray
    """bool [tokens]: whether no other token was likelier; of equally likely ones the lowest id counts."""

    @property
    def total(self) -> float:
        """The log-likelihood of all tokens, nats."""
        return float(np.sum(self.log_probs, dtype=np.float64))

    @property
    def all_greedy(self) -> bool:
        """Whether greedy decoding would say exactly this."""
        return bool(np.all(self.greedy))


def after(form: Form, context: Sequence[int], said: Sequence[int]) -> Window:
    """The window of ids said after a context, which may be empty."""
    read = form.read(context)
    # A model without a beginning was trained on documents one behind the other: each stands behind an end.
    return Window(read if read or form.encoder else [form.end], said)


def length(form: Form, window: Window) -> int:
    """Tokens in the longest sequence that the model is given."""
    if form.encoder:
        return max(len(window.read), len(window.said))
    return len(window.read) + len(window.said) - 1


def cut_left(form: Form, window: Window, context: int) -> Window:
    """The window with as much less read, from its left, as `context` asks for.

    Raises DataError where what is said alone does not fit.
    """
    if len(window.said) > context:
        raise DataError(f"{len(window.said)} tokens to be scored at once are more than the context of {context}")
    room = context if form.encoder else context + 1 - len(window.said)
    return Window(window.read[-room:], window.said)


def rolling(form: Form, tokens: Sequence[int], context: int, stride: int | None = None) -> list[Window]:
    """Windows over a text of any length that score each of its tokens exactly once.

    The first begins as a document does and scores as many tokens as fit. Each later one scores the next `stride`, the
    last what is left, and reads as many before them as there is room for.

    Args:
      context: most tokens that the model is given at once.
      stride: from 1 to `context`. Small ones give each token a longer past, and take more windows. None is the
        largest: what EleutherAI's lm-evaluation-harness does (`context_len=1`), Megatron-LM's is 32.

    Raises DataError for a stride that is not possible.
    """
    first, closing = after(form, [], []).read, list(form.closing)
    beginning = 0 if form.encoder else len(first) - 1
    most = context if form.encoder else context - len(closing)
    stride = most if stride is None else stride
    if not 1 <= stride <= most:
        raise DataError(f"a stride of {stride} tokens must be from 1 to {most}, which the context has room for")
    end = min(context - beginning, len(tokens))
    windows = [Window(first, tokens[:end])] if end else []
    while end < len(tokens):
        start, end = end, min(end + stride, len(tokens))
        room = (context if form.encoder else context + 1 - (end - start)) - len(closing)
        windows.append(Window([*tokens[max(start - room, 0) : start], *closing], tokens[start:end]))
    return windows


class Scorer:
    """Scores windows with one model of any form, on any mesh. Compiled once for each shape of batch.

    Args:
      form: how the model is given what it reads.
      context: most tokens of a sequence.
      precision: of the arithmetic, one of `POLICIES`; log-probabilities are taken in fp32.
      rows: sequences scored at once, filled up to what the mesh needs.

    Tokens of experts are never dropped here, whatever capacity the model was trained with, as when it writes: what a
    window is worth must not depend on its neighbours.

    Raises ConfigError for an encoder, which says nothing after what it reads.
    """

    def __init__(self, model: Model, form: Form, context: int, precision: str = "fp32", rows: int = 16):
        config = model.config
        if config.shape == "encoder":
            raise ConfigError("model.shape='encoder' says nothing to be scored; a 'decoder' or 'encoder_decoder' does")
        if config.moe.num_experts:
            model = Model(replace(config, moe=replace(config.moe, dispatch="dropless")), model.rules, model.dtype)
        # What is asked of a model is of any length.
        self.model = model = model.with_whole_sequences()
        self.form = form
        self.context = context
        parts = model.rules.parts("batch")
        self.rows = -(-rows // parts) * parts
        self.report: Callable[[int, int], None] = lambda scored, windows: None
        """Is told after each batch how many windows of how many are scored."""
        self._policy = POLICIES[precision]
        self._score = jax.jit(
            self._log_probs,
            out_shardings=model.rules(),
            compiler_options=compiler_options(model.rules.mesh, model.config.matmuls),
        )

    def __call__(self, params: Params, windows: Sequence[Window]) -> list[Scored]:
        """Of each window, in order. Those of equal shape are scored together, whatever order they come in.

        Raises DataError, before anything is compiled, for a window that does not fit the context, or says nothing.
        """
        self.check(windows)
        found: dict[int, Scored] = {}
        waiting: tuple[list[int], Any] | None = None
        for numbers, batch in self._batches(windows):
            # The device is at this batch while the one before it is read.
            scored = self._score(params, jax.tree.map(self._place, batch))
            if waiting:
                found |= self._read(windows, *waiting)
                self.report(len(found), len(windows))
            waiting = numbers, scored
        if waiting:
            found |= self._read(windows, *waiting)
            self.report(len(found), len(windows))
        return [found[number] for number in range(len(windows))]

    def check(self, windows: Sequence[Window]) -> None:
        """Raises DataError where one does not fit the context, or says nothing."""
        for window in windows:
            if not window.said:
                raise DataError("there is no token to score")
            if length(self.form, window) > self.context:
                raise DataError(
                    f"{length(self.form, window)} tokens are more than the context of {self.context} holds at once"
                )

    def _batches(self, windows: Sequence[Window]) -> Iterator[tuple[list[int], Batch]]:
        """Numbers of windows that are filled up to the same lengths, and their batch; the largest first."""
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, window in enumerate(windows):
            alike[self._lengths(window)].append(number)
        for lengths in sorted(alike, reverse=True):
            # Neighbours in length side by side, so that one row less is one row of padding less.
            numbers = sorted(alike[lengths], key=lambda number: -length(self.form, windows[number]))
            for start in range(0, len(numbers), self.rows):
                some = numbers[start : start + self.rows]
                yield some, self._batch([windows[number] for number in some], lengths)

    def _lengths(self, window: Window) -> tuple[int, ...]:
        if self.form.encoder:
            return self._filled(len(window.said)), self._filled(len(window.read))
        return (self._filled(length(self.form, window)),)

    def _filled(self, tokens: int) -> int:
        filled = SHORTEST
        while filled < tokens:
            filled *= 2
        return min(filled, self.context)

    def _batch(self, windows: list[Window], lengths: tuple[int, ...]) -> Batch:
        """int32 [rows, length] each; rows beyond the windows, and places behind them, are padding (segment 0)."""
        shape = (self.rows, lengths[0])
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        encoder = np.zeros((2, self.rows, lengths[1]), np.int32) if self.form.encoder else None
        prefix = np.zeros(shape, bool) if self.form.both_ways else None
        for row, window in enumerate(windows):
            read = window.read if encoder is None else [BEGINNING]
            sequence = [*read, *window.said]
            tokens[row, : len(sequence) - 1] = sequence[:-1]
            targets[row, : len(sequence) - 1] = sequence[1:]
            segments[row, : len(sequence) - 1] = 1
            if encoder is not None:
                encoder[0, row, : len(window.read)] = window.read
                encoder[1, row, : len(window.read)] = 1
            if prefix is not None:
                prefix[row, : len(read)] = True
        batch = Batch(tokens, targets, segments, prefix=prefix)
        return batch if encoder is None else batch._replace(encoder_tokens=encoder[0], encoder_segments=encoder[1])

    def _log_probs(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """fp32 and bool [B, L]: of each target, and whether it is the likeliest."""
        logits_BLV = self.model.bind(self._policy.cast(params))(batch).logits_BLV
        nll_BL, _ = cross_entropy(logits_BLV, batch.targets)
        # By maxima and minima, which go over a vocabulary that is cut: an index into it would gather the logits.
        V = logits_BLV.shape[-1]
        columns_BLV = jax.lax.broadcasted_iota(
            jnp.int32, logits_BLV.shape, 2, out_sharding=jax.typeof(logits_BLV).sharding
        )
        likeliest_BL1 = jnp.max(logits_BLV, axis=-1, keepdims=True)
        first_BL = jnp.min(jnp.where(logits_BLV == likeliest_BL1, columns_BLV, V), axis=-1)
        return -nll_BL, first_BL == batch.targets

    def _read(self, windows: Sequence[Window], numbers: list[int], scored: Any) -> dict[int, Scored]:
        log_probs_BL, greedy_BL = map(np.asarray, scored)
        found = {}
        for row, number in enumerate(numbers):
            read = 1 if self.form.encoder else len(windows[number].read)
            at = slice(read - 1, read - 1 + len(windows[number].said))
            found[number] = Scored(log_probs_BL[row, at], greedy_BL[row, at])
        return found

    def _place(self, leaf: np.ndarray) -> Array:
        sharding = self.model.rules("batch", None)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
