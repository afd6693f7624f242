"""`pathways-lm harness`: EleutherAI's lm-evaluation-harness on a run."""

import argparse
import sys

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.errors import ConfigError
from pathways_lm.evaluate import harness
from pathways_lm.language_model import load


def main(arguments: argparse.Namespace) -> int:
    """Runs the harness's own command line with the model `pathways_lm` and this run. Its exit code is its own."""
    if not arguments.line:
        raise ConfigError("nothing to evaluate: behind -- stand the harness's own arguments, as -- --tasks hellaswag")
    for flag in ("--model", "--model_args"):
        if flag in arguments.line:
            raise ConfigError(f"{flag} is said by the run folder; leave it out behind --")
    if "," in str(arguments.run):
        raise ConfigError(f"the harness cannot be told of a folder with a comma in its name: '{arguments.run}'")
    prepare_devices(arguments, RunFolder(arguments.run).experiment().data.cache_dir)
    harness.register(load)
    from lm_eval.__main__ import cli_evaluate  # late, as whoever has not asked for it need not have it

    model = f"run={arguments.run}" + (f",overrides={';'.join(arguments.overrides)}" if arguments.overrides else "")
    sys.argv = ["lm_eval", "run", "--model", harness.NAME, "--model_args", model, *arguments.line]
    try:
        cli_evaluate()
    except ValueError as error:
        # Of what the harness raises, a name that it does not know is the user's mistake.
        if not str(error).startswith("Tasks not found"):
            raise
        raise ConfigError(f"lm-evaluation-harness: {error}; those of your own need --include_path FOLDER") from None
    return 0
