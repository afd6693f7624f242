"""What a model learns from."""

import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded

OF_TEXTS = ("causal", "prefix", "fill_in_the_middle", "masked")
"""Objectives that are one text."""
OF_PAIRS = ("span_corruption", "ul2", "text_to_text")
"""Objectives that say targets after inputs."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """What is read, and how it becomes batches."""

    section: typing.ClassVar[str] = "data"

    mixture: str = "python_text"
    """A task or mixture of docs/tasks.md, or one of the t5 package whose data lies in `datasets_dir`."""
    datasets_dir: str = "~/tensorflow_datasets"
    """Where TensorFlow Datasets' folders lie. Nothing is downloaded."""
    files: str = ""
    """A glob of files, or a data set's folder, read in place of `mixture`: text or JSON lines, plain or gz, TFRecord,
    Parquet, Arrow, and folders of Hugging Face and TensorFlow Datasets."""
    text_key: str = "text"
    """The key of a record that holds the document."""
    inputs_key: str = "inputs"
    """For text_to_text, the key of a record that holds what is read."""
    targets_key: str = "targets"
    """For text_to_text, the key of a record that holds what is asked for."""
    vocabulary: str = ""
    """A SentencePiece model file; empty trains one on the corpus."""
    objective: str = bounded("causal", one_of=(*OF_TEXTS, *OF_PAIRS))
    """What is predicted: the next token, the next after a prefix seen both ways, or with a part moved to the end; T5's
    dropped spans, UL2's mixture of them, the targets of pairs; BERT's masks."""
    inputs: str = bounded("encoder", one_of=("encoder", "prefix", "causal"))
    """Who reads the inputs of spans, UL2 and pairs: an encoder, or a decoder before it says the targets, which sees
    them both ways (`prefix`) or one after the other (`causal`)."""
    targets_length: int = bounded(0, at_least=0)
    """Tokens of the targets of text_to_text beside an encoder; 0 takes `sequence_length`."""
    whole_words: bool = False
    """For masked: words are masked, not single pieces of them."""
    middle_rate: float = bounded(0.5, at_least=0, at_most=1)
    """For fill_in_the_middle, the share of documents that are rearranged."""
    middle_spm_rate: float = bounded(0.5, at_least=0, at_most=1)
    """Of those, the share that begins with the suffix (SPM); the others begin with the prefix (PSM)."""
    extra_ids: int = bounded(0, at_least=0)
    """Ids behind the vocabulary's pieces that no text has: T5's sentinels (100), BERT's mask (1), UL2's modes (3)."""
    sequence_length: int = bounded(2048, at_least=2)
    batch_size: int = bounded(512, at_least=1)
    """Sequences in a batch, over all devices."""
    batch_ramp: str = ""
    """Smaller batches before: `512x50000,1024x65000` (sizes and steps, PaLM), or `32+32/12e9` (from a size by so much
    over so many tokens, MT-NLG)."""
    validation_fraction: float = bounded(0.02, above=0, at_most=0.5)
    """The share of files kept for validation, chosen by a hash of their names."""
    examples: int = bounded(0, at_least=0)
    """So many training examples of each task are kept, chosen by `seed`, of which a smaller number are a part; 0 keeps
    all. Epochs are then as short as they come."""
    seed: int = bounded(0, at_least=0)
    cache_dir: str = "~/.cache/pathways_lm"
    cache: str = ""
    """A folder that `pathways-lm data cache` wrote, to be read in place of the sources."""
