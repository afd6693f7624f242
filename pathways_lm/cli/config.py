"""`pathways-lm config`: the resolved experiment."""

import argparse
import json

from pathways_lm.config import to_dict
from pathways_lm.configure import load


def main(arguments: argparse.Namespace) -> int:
    """Prints every field as JSON, in the form of a run folder's config.json."""
    experiment = load(arguments.config, arguments.overrides, arguments.gin_bindings)
    print(json.dumps(to_dict(experiment), indent=2))
    return 0
