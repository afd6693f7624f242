"""`pathways-lm generate`: continues prompts."""

import argparse
import sys

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.language_model import load


def main(arguments: argparse.Namespace) -> int:
    """Prints a single prompt and its continuation as it is written; several, one after the other at the end."""
    if arguments.num_tokens < 1:
        raise ConfigError(f"--num-tokens must be at least 1, not {arguments.num_tokens}")
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed must be from 0 to {2**32 - 1}, not {arguments.seed}")
    sampler = Sampler(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    prepare_devices(arguments, RunFolder(arguments.run).experiment().data.cache_dir)
    model = load(arguments.run, arguments.overrides)
    if len(arguments.prompt) == 1:
        sys.stdout.write(arguments.prompt[0])
        for text in model.stream(arguments.prompt[0], sampler, arguments.num_tokens, arguments.seed):
            sys.stdout.write(text)
            sys.stdout.flush()
        print()
        return 0
    written = model.generate(arguments.prompt, sampler, arguments.num_tokens, seed=arguments.seed)
    for prompt, one in zip(arguments.prompt, written, strict=True):
        print(prompt + one.text)
        print("-" * 80)
    return 0
