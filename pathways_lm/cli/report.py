"""`pathways-lm report`: the page of a run."""

import argparse

from pathways_lm.report.page import write_report


def main(arguments: argparse.Namespace) -> int:
    """Writes report.html and prints where it lies."""
    print(write_report(arguments.run))
    return 0
