"""`pathways-lm convert`: published checkpoints into run folders, and back."""

import argparse
from pathlib import Path

from pathways_lm.convert.convert import export_checkpoint, import_checkpoint, is_published


def main(arguments: argparse.Namespace) -> int:
    """The direction is told by the source: a folder of Hugging Face has a config.json with a model_type."""
    source, target = Path(arguments.source), Path(arguments.target)
    if is_published(source):
        config = import_checkpoint(source, target, arguments.pad_vocab)
        print(f"'{target}' is a run folder of {config.num_layers} layers of {config.embed_dim}")
        if not (target / "vocabulary.model").is_file():
            print("without a vocabulary: the checkpoint has no SentencePiece model that can be used here")
    else:
        print(f"'{target}' is a {export_checkpoint(source, target, arguments.dtype, arguments.vocab_rows)} checkpoint")
    return 0
