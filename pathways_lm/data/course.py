"""The batches of a run, one after the other."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from jax.sharding import Sharding

from pathways_lm.data.balance import Balance
from pathways_lm.data.loader import Loader
from pathways_lm.models.batch import Batch

_READ_AHEAD = 2


class Course:
    """Reads batches ahead in a thread, but never past a step at which the shares of tasks will change.

    What fails while reading is raised by `take`.
    """

    def __init__(self, loader: Loader, balance: Balance, sharding: Sharding, step: int = 0):
        self._loader, self._balance, self._sharding = loader, balance, sharding
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: deque[Future[Batch]] = deque()
        self._step = step
        """The next that is taken, counted from 0."""
        self._changed = -1
        """In front of which step the shares last changed."""

    def __enter__(self) -> "Course":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)

    def take(self) -> Batch:
        """The next step's batch."""
        self._fill()
        batch = self._ahead.popleft().result()
        self._step += 1
        # Read on while the step runs.
        self._fill()
        return batch

    def _fill(self) -> None:
        while len(self._ahead) <= _READ_AHEAD:
            step = self._step + len(self._ahead)
            if self._balance.due(step) and step != self._changed:
                return
            self._ahead.append(self._reader.submit(self._loader.batch, step, self._sharding))

    def due(self) -> bool:
        """Whether `change` is to be called before the next `take`."""
        return self._balance.due(self._step) and self._step != self._changed

    def change(self) -> dict[str, float]:
        """Lets the shares follow the losses noted."""
        self._changed = self._step
        return self._balance.change(self._loader.ramp.first_row(self._step))

    def note(self, nll_T: np.ndarray, tokens_T: np.ndarray) -> None:
        """Sums over a step's targets, by task."""
        tasks = self._balance.base
        nll, tokens = ([float(number) for number in sums] for sums in (nll_T, tokens_T))
        self._balance.note(dict(zip(tasks, nll, strict=True)), dict(zip(tasks, tokens, strict=True)))

    def rows_read(self, step: int) -> int:
        """Sequences that the first `step` steps read."""
        return self._loader.ramp.rows_before(step)

    def batch_size(self, step: int) -> int:
        """Sequences of the batch behind the first `step` steps."""
        return self._loader.ramp.batch_size(step)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must know to go on with the same batches."""
        return {"balance": self._balance.to_json(), "skips": [list(skip) for skip in self._loader.ramp.skips]}

    def go_back(self, step: int, facts: Mapping[str, Any], skips: tuple[tuple[int, int], ...]) -> None:
        """Goes on behind the first `step` steps, as their checkpoint says, but for what is skipped from now on."""
        for each in self._ahead:
            each.cancel()
        wait([each for each in self._ahead if not each.cancelled()])
        self._ahead.clear()
        self._step, self._changed = step, -1
        self._loader.ramp = replace(self._loader.ramp, skips=skips)
        self._balance.restore(facts["balance"], self._loader.ramp.first_row(step))

    @property
    def shares(self) -> dict[str, float]:
        """Those in force."""
        return self._balance.mixture.shares
