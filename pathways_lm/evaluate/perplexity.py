"""How well a model predicts a text."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from pathways_lm.compiler import compiler_options
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, Params
from pathways_lm.train.losses import Sums, loss_sums
from pathways_lm.train.precision import POLICIES


class Perplexity:
    """Scores batches; compiled once for one batch shape."""

    def __init__(self, model: Model, precision: str, tasks: Sequence[str] = ()):
        self._rules, self._tasks = model.rules, tasks
        self._score = jax.jit(
            lambda params, batch: loss_sums(model, POLICIES[precision], params, batch)[1],
            out_shardings=model.rules(),
            compiler_options=compiler_options(model.rules.mesh, model.config.matmuls),
        )

    def __call__(self, params: Params, batches: Iterable[Batch], num_bytes: int | None) -> dict[str, Any]:
        """`loss` in nats per target, that of each of `tasks` and, where all text is scored, `bits_per_byte`.

        Args:
          batches: of numpy arrays [B, L]; padding (0) is not scored; with several tasks, rows tell theirs.
          num_bytes: length in bytes of the text the batches hold; None where not each of its tokens is scored once.
            Document ends are scored too, so that the bits are those of a code from which the documents could be
            read back.
        """
        parts = [self._score(params, self._place(batch)) for batch in batches]
        sums: list[Sums] = jax.device_get(parts)
        nll, tokens = sum(float(part.nll) for part in sums), sum(float(part.tokens) for part in sums)
        figures: dict[str, Any] = {"loss": nll / tokens}
        if len(self._tasks) > 1:
            nll_T, tokens_T = np.sum([np.asarray(part.tasks, np.float64) for part in sums], axis=0)
            by_task = zip(self._tasks, nll_T, tokens_T, strict=True)
            figures["tasks"] = {task: {"loss": float(nll / max(count, 1))} for task, nll, count in by_task}
        return figures if num_bytes is None else figures | {"bits_per_byte": nll / math.log(2) / num_bytes}

    def _place(self, batch: Batch) -> Batch:
        sharding = self._rules("batch", None)

        def place(leaf: np.ndarray) -> Array:
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

        return jax.tree.map(place, batch)
