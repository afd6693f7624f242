"""Mistakes a user can make, each told in one line.

The command line prints the message of a `UserError` and exits with code 2; anything else that is
raised is a fault of this package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the field, file or tensor and what would be right."""


class ConfigError(UserError):
    """A configuration that cannot be right."""


class DataError(UserError):
    """A corpus, vocabulary or cache that cannot be used."""


class CheckpointError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TrainingError(UserError):
    """A run that cannot go on by itself."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known word, else the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
