"""`pathways-lm report`: the page of a run, or of several side by side."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathways_lm.errors import UserError


def main(arguments: argparse.Namespace) -> int:
    """Writes the page and prints where it lies."""
    runs, out = arguments.runs, arguments.out
    print(write_page(runs[0], out) if len(runs) == 1 else write_comparison(runs, out or "comparison.html"))
    return 0


def write_page(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes a run's page, by default its report.html. Raises UserError where matplotlib is not installed."""
    with _needing():
        from pathways_lm.report.page import write_report
    return write_report(run, out)


def write_comparison(runs: list[str], out: str | Path) -> Path:
    """Writes the page of several runs. Raises UserError where matplotlib is not installed."""
    with _needing():
        from pathways_lm.report.compare import write_comparison
    return write_comparison(runs, out)


@contextmanager
def _needing() -> Iterator[None]:
    """Late imports, as matplotlib takes a second, and training must not wait for it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install 'pathways-lm[report]'") from None
