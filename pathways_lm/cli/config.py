"""`pathways-lm config`: the resolved experiment."""

import argparse
import json

from pathways_lm.config import to_dict
from pathways_lm.configure import load, to_gin


def main(arguments: argparse.Namespace) -> int:
    """Prints every field as JSON, in the form of a run folder's config.json; or what is not a default, as gin."""
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    print(to_gin(experiment) if arguments.gin else json.dumps(to_dict(experiment), indent=2))
    return 0
