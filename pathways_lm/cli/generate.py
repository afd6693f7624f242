"""`pathways-lm generate`: continues prompts."""

import argparse
import sys

import jax

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.language_model import load


def main(arguments: argparse.Namespace) -> int:
    """Prints a single prompt and its continuation as it is written; several, one after the other at the end."""
    if arguments.num_tokens < 1:
        raise ConfigError(f"--num-tokens must be at least 1, not {arguments.num_tokens}")
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed must be from 0 to {2**32 - 1}, not {arguments.seed}")
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p)
    prepare_devices(arguments, RunFolder(arguments.run).experiment().data.cache_dir)
    trained = load(arguments.run, arguments.overrides)
    vocabulary = trained.vocabulary
    generator = Generator(trained.model, vocabulary.size, vocabulary.eod_id, trained.experiment.data.sequence_length)
    prompts = [vocabulary.encode(prompt) for prompt in arguments.prompt]
    generator.room(prompts)
    steps = generator.stream(trained.params, prompts, sampler, arguments.num_tokens, jax.random.key(arguments.seed))
    if len(prompts) == 1:
        sys.stdout.write(arguments.prompt[0])
        for text in vocabulary.stream(int(step[0]) for step in steps):
            sys.stdout.write(text)
            sys.stdout.flush()
        print()
        return 0
    written = list(steps)
    for row, prompt in enumerate(arguments.prompt):
        print(prompt + vocabulary.decode(int(step[row]) for step in written))
        print("-" * 80)
    return 0
