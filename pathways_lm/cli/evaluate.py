"""`pathways-lm evaluate`: a run's validation text, scored."""

import argparse

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.data.cache import prepare
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import make_objective
from pathways_lm.errors import CheckpointError
from pathways_lm.evaluate.perplexity import Perplexity
from pathways_lm.language_model import load


def main(arguments: argparse.Namespace) -> int:
    """Prints nats per token and bits per byte, with general compressors on the same text beside them."""
    prepare_devices(arguments, RunFolder(arguments.run).experiment().data.cache_dir)
    trained = load(arguments.run, arguments.overrides)
    data = trained.experiment.data
    corpus = prepare(data, trained.experiment.model.vocab_size)
    if corpus.vocabulary.fingerprint != trained.vocabulary.fingerprint:
        raise CheckpointError(
            f"the corpus on this machine gives another vocabulary than '{arguments.run}' was trained with"
        )
    batches = Loader(corpus, data, make_objective(data, corpus.vocabulary)).validation(data.batch_size)
    scores = Perplexity(trained.model, trained.experiment.train.precision)(
        trained.params, batches, corpus.validation_bytes if data.objective == "causal" else None
    )
    print(f"step {trained.step}")
    print(f"{'loss':>10}  {scores['loss']:.4f} nats/token")
    if "bits_per_byte" in scores:
        for name, bits in {"model": scores["bits_per_byte"], **corpus.yardsticks}.items():
            print(f"{name:>10}  {bits:.4f} bits/byte")
    return 0
