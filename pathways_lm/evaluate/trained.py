"""What evaluation asks of a loaded run. `language_model.LanguageModel` is one."""

from collections.abc import Sequence
from typing import Protocol

from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.decode.form import Form
from pathways_lm.decode.sampling import Sampler
from pathways_lm.evaluate.scoring import Scored, Window


class Written(Protocol):
    """What was written after a prompt."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...


class Trained(Protocol):
    """A model with its parameters and vocabulary."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def form(self) -> Form: ...
    @property
    def context(self) -> int:
        """Most tokens that are read at once, and most that are said."""
        ...

    def log_likelihoods(self, windows: Sequence[Window]) -> list[Scored]:
        """Of what each window says, token by token."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        sampler: Sampler | None = None,
        num_tokens: int = 200,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> Sequence[Written]:
        """Continues each prompt until the end, one of the `stop` strings, or after `num_tokens`."""
        ...
