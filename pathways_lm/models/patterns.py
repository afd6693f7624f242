"""Parameters by pattern: `embedding`, `encoder/blocks`, `*/bias`."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from pathways_lm.errors import ConfigError


def fits(pattern: str, path: str) -> bool:
    """Whether a run of names in `path` is `pattern`, in which `*` stands for any text."""
    return fnmatchcase(f"/{path}/", f"*/{pattern}/*")


def check_patterns(field: str, patterns: Iterable[str], paths: Sequence[str]) -> None:
    """Raises ConfigError naming the field and the names there are, where a pattern fits none of `paths`."""
    for pattern in patterns:
        if not any(fits(pattern, path) for path in paths):
            names = sorted({name for path in paths for name in path.split("/")})
            raise ConfigError(f"{field}: no parameter fits {pattern!r}; names: {', '.join(names)}")
