"""How well a model predicts a text."""

import functools
import math
from collections.abc import Iterable

import jax
import numpy as np
from jax import Array

from pathways_lm.models.decoder import Model, Params
from pathways_lm.train.losses import Sums, next_token_sums
from pathways_lm.train.precision import POLICIES


class Perplexity:
    """Scores token sequences; compiled once for one batch shape."""

    def __init__(self, model: Model, precision: str):
        self._rules = model.rules
        self._score = jax.jit(
            functools.partial(next_token_sums, model, POLICIES[precision]), out_shardings=model.rules()
        )

    def __call__(self, params: Params, batches: Iterable[np.ndarray], num_bytes: int) -> dict[str, float]:
        """`loss` in nats per token and `bits_per_byte` over all batches.

        Args:
          batches: int32 [B, L] arrays; padding (0) is not scored.
          num_bytes: length in bytes of the text the batches hold. Document ends are scored too, so
            that the bits are those of a code from which the documents could be read back.
        """
        parts = [self._score(params, self._place(batch)) for batch in batches]
        sums: list[Sums] = jax.device_get(parts)
        nll, tokens = sum(float(part.nll) for part in sums), sum(float(part.tokens) for part in sums)
        return {"loss": nll / tokens, "bits_per_byte": nll / math.log(2) / num_bytes}

    def _place(self, batch: np.ndarray) -> Array:
        sharding = self._rules("batch", "length")
        return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])
