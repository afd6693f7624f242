import time

import pytest

from pathways_lm.train.books import Books
from pathways_lm.train.loop import Loop
from pathways_lm.train.spikes import Rewinds, Spikes


class Fixed:
    """A course of given batches, all of a size, whose shares never change."""

    def __init__(self, batches, rows=1):
        self._batches, self._rows, self.shares = batches, rows, {}

    def take(self):
        return next(self._batches)

    def due(self):
        return False

    def rows_read(self, step):
        return step * self._rows

    def batch_size(self, step):
        return self._rows

    def facts(self):
        return {}


@pytest.fixture
def make_loop(tmp_path):
    """A loop around given parts."""

    def make(config, state, step, batches, store, log, workload, hooks, rows=1, **parts) -> Loop:
        books = Books(time.perf_counter())
        parts = {"course": Fixed(batches, rows), "restore": lambda step: pytest.fail("went back"), **parts}
        rewinds = Rewinds(tmp_path / "rewinds.json")
        return Loop(
            config=config, state=state, step_for=lambda rows: step, store=store, facts={}, log=log, workload=workload,
            hooks=hooks, books=books, spikes=Spikes(config), rewinds=rewinds, **parts,
        )  # fmt: skip

    return make
