"""Dataclasses that check their fields when they are built."""

import dataclasses
import math
import typing
from dataclasses import field
from typing import Any

from pathways_lm.errors import ConfigError, nearest


def bounded(default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A dataclass field with bounds: `above`, `at_least`, `below`, `at_most`, `one_of`."""
    if default is dataclasses.MISSING:
        return field(metadata=bounds)
    return field(default=default, metadata=bounds)


def parse_patterns(name: str, text: str) -> tuple[str, ...]:
    """What stands between the commas of a field. Raises ConfigError naming it where that is nothing."""
    entries = tuple(entry.strip() for entry in text.split(",")) if text else ()
    if not all(entries):
        raise ConfigError(f"{name}={text!r} has an empty entry; entries stand between single commas")
    return entries


class Checked:
    """Checks every field of a dataclass against its type and its bounds."""

    section: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            name = f"{self.section}.{item.name}" if self.section else item.name
            _check(name, getattr(self, item.name), types[item.name], item.metadata)


def _check(name: str, value: Any, kind: type, bounds: typing.Mapping[str, Any]) -> None:
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} must be {_kind_name(kind)}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value!r}")
    if "above" in bounds and not value > bounds["above"]:
        raise ConfigError(f"{name} must be above {bounds['above']}, not {value!r}")
    if "at_least" in bounds and not value >= bounds["at_least"]:
        raise ConfigError(f"{name} must be at least {bounds['at_least']}, not {value!r}")
    if "below" in bounds and not value < bounds["below"]:
        raise ConfigError(f"{name} must be below {bounds['below']}, not {value!r}")
    if "at_most" in bounds and not value <= bounds["at_most"]:
        raise ConfigError(f"{name} must be at most {bounds['at_most']}, not {value!r}")
    if "one_of" in bounds and value not in bounds["one_of"]:
        raise ConfigError(f"{name} has no choice {value!r}{nearest(str(value), bounds['one_of'])}")


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return names.get(kind, f"a {kind.__name__}")
