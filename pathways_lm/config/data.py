"""What a model learns from."""

import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """What is read, and how it becomes batches."""

    section: typing.ClassVar[str] = "data"

    mixture: str = "python_text"
    """A seqio task or mixture: `python_docs`, `python_stdlib` or `python_text` (both)."""
    files: str = ""
    """A glob of text or JSON-lines files, plain or gz. When given, it is read in place of `mixture`."""
    text_key: str = "text"
    """The key of a JSON line that holds the document."""
    vocabulary: str = ""
    """A SentencePiece model file; empty trains one on the corpus."""
    objective: str = bounded("causal", one_of=("causal", "prefix", "span_corruption", "masked"))
    """What is predicted: the next token, the next after a prefix seen both ways, T5's dropped spans, BERT's masks."""
    extra_ids: int = bounded(0, at_least=0)
    """Ids behind the vocabulary's pieces that no text has: T5's sentinels (100), BERT's mask (1)."""
    sequence_length: int = bounded(2048, at_least=2)
    batch_size: int = bounded(512, at_least=1)
    """Sequences in a batch, over all devices."""
    batch_ramp: str = ""
    """Smaller batches before: `512x50000,1024x65000` (sizes and steps, PaLM), or `32+32/12e9` (from a size by so much
    over so many tokens, MT-NLG)."""
    validation_fraction: float = bounded(0.02, above=0, at_most=0.5)
    """The share of files kept for validation, chosen by a hash of their names."""
    seed: int = bounded(0, at_least=0)
    cache_dir: str = "~/.cache/pathways_lm"
    cache: str = ""
    """A folder that `pathways-lm data cache` wrote, to be read in place of the sources."""
