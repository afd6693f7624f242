"""`pathways-lm report`: the page of a run."""

import argparse
from pathlib import Path

from pathways_lm.errors import UserError


def main(arguments: argparse.Namespace) -> int:
    """Writes report.html and prints where it lies."""
    print(write_page(arguments.run))
    return 0


def write_page(run: str | Path) -> Path:
    """Writes a run's report.html. Raises UserError where matplotlib is not installed."""
    # Late, as matplotlib takes a second to import, and training must not wait for it.
    try:
        from pathways_lm.report.page import write_report
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install 'pathways-lm[report]'") from None
    return write_report(run)
