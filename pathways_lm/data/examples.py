"""What a corpus is a list of."""

from dataclasses import dataclass

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Document:
    """One text. `name` is its file; `part` counts the documents within it."""

    name: str
    text: str
    part: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True)
class Pair:
    """What is read and what is asked for. `name` and `part` are as of a document."""

    name: str
    inputs: str
    targets: str
    part: int = 0

    @property
    def texts(self) -> tuple[str, ...]:
        return self.inputs, self.targets

    @property
    def text(self) -> str:
        """All of it, where only the characters count."""
        return f"{self.inputs}{self.targets}"


Example = Document | Pair
