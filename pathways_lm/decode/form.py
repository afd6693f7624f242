"""How a model is given a prompt: what it was trained with says so."""

from collections.abc import Sequence
from typing import NamedTuple

from pathways_lm.config import DataConfig
from pathways_lm.config.data import OF_PAIRS

BEGINNING = 0
"""What the first position of a training sequence reads, and padding."""


class Form(NamedTuple):
    """Where a prompt goes, and the ids that mean something."""

    size: int
    """Ids that may be written are below it. A model may have more rows."""
    end: int
    """Closes what is written."""
    encoder: bool = False
    """The prompt is read by an encoder, and the decoder writes from its beginning."""
    both_ways: bool = False
    """A decoder sees the whole prompt from each of its positions."""
    closing: tuple[int, ...] = ()
    """Ids that stand behind every prompt."""
    begin: int | None = BEGINNING
    """Id before the first that a decoder reads. None: it reads the prompt as it is, which must not be empty then."""
    never: tuple[int, ...] = (BEGINNING,)
    """Ids that are never written."""

    def read(self, prompt: Sequence[int]) -> list[int]:
        """What the encoder, or the decoder in its place, is given to read."""
        begin = [] if self.encoder or self.begin is None else [self.begin]
        return [*begin, *prompt, *self.closing]


def form_of(data: DataConfig, size: int, end: int) -> Form:
    """The form of prompts of a model that was trained on `data` with a vocabulary of `size` pieces."""
    of_pairs = data.objective in OF_PAIRS
    return Form(
        # Of pairs, spans and modes are said by ids behind the pieces.
        size + (data.extra_ids if of_pairs else 0),
        end,
        encoder=of_pairs and data.inputs == "encoder",
        both_ways=data.objective == "prefix" or (of_pairs and data.inputs == "prefix"),
        # Inputs of pairs are closed by the end (`data.objectives`).
        closing=(end,) if of_pairs else (),
    )
