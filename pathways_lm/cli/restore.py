"""A run's way back to one of its checkpoints."""

from typing import Any

from pathways_lm.checkpoint.store import Store
from pathways_lm.data.cache import Corpus
from pathways_lm.errors import CheckpointError
from pathways_lm.train.spikes import Rewinds
from pathways_lm.train.state import TrainState, from_items, to_items


class Restorer:
    """Brings a run back to one of its checkpoints, on this mesh."""

    def __init__(self, store: Store, abstract: TrainState, corpus: Corpus, rewinds: Rewinds):
        self._store, self._abstract, self._rewinds = store, to_items(abstract), rewinds
        self.facts = {"data_fingerprint": corpus.fingerprint, "vocabulary_fingerprint": corpus.vocabulary.fingerprint}
        self.damaged: list[tuple[int, str]] = []

    def newest(self) -> tuple[TrainState | None, dict[str, Any] | None]:
        """The newest whole checkpoint's state and facts; None and None where there is none at all.

        Raises CheckpointError where its data was other data.
        """
        while True:
            restored = self._store.restore(self._abstract, lambda *it: self.damaged.append(it), writable=True)
            if restored is None:
                return None, None
            step, items, saved = restored
            for name, what in (("vocabulary_fingerprint", "another vocabulary"), ("data_fingerprint", "other data")):
                if saved[name] != self.facts[name]:
                    raise CheckpointError(
                        f"checkpoint {step} in '{self._store.folder}' was trained on {what} "
                        f"({saved[name][:12]}, not {self.facts[name][:12]}); "
                        "bring the corpus back as it was, or choose another run folder"
                    )
            # A kill came between the note of a rewind and the end of what it took back.
            undone = [each for each in self._rewinds.done[len(saved["skips"]) :] if each.restored < step]
            if not undone:
                return from_items(items), saved
            self._store.withdraw(min(each.restored for each in undone))

    def back_to(self, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint not behind `step`; all later ones are put aside."""
        self._store.withdraw(step)
        state, saved = self.newest()
        if state is None or saved is None:
            raise CheckpointError(f"there is no whole checkpoint up to step {step} in '{self._store.folder}'")
        return state, saved
