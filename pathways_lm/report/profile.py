"""Where a step's time went, by named scope: read from the trace that `train.profile_steps` left in a run folder."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathways_lm.errors import CheckpointError

SCOPES = {
    "embedding": "embedding",
    "attention": "attention",
    "cross_attention": "attention to the encoder",
    "mlp": "mlp",
    "moe": "moe",
    "norm": "norms",
    "loss": "loss",
    "optimizer": "optimizer",
    # What has no scope within these.
    "gradients": "gradients, the rest",
}
"""Names of scopes in the program, and as they are told."""
OTHERS = "all else"

_BACKWARD = "transpose("
_NAMES = re.compile(r"[^/()]+")


@dataclass(frozen=True)
class Part:
    """Seconds of one step, added over what worked at the same time."""

    scope: str
    forward: float
    backward: float
    share: float
    """Of all parts."""


@dataclass(frozen=True)
class Profile:
    """Parts, the longest first."""

    steps: int
    parts: tuple[Part, ...]


def profile_of(folder: Path) -> Profile | None:
    """The profile in `profile/` of a run folder; None where there is none, or none that is whole.

    Raises CheckpointError where a file is damaged.
    """
    scopes, traces = folder / "scopes.json", sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if not scopes.is_file() or not traces:
        return None
    from jax.profiler import ProfileData

    try:
        told = json.loads(scopes.read_text())
        trace = ProfileData.from_file(str(traces[-1]))
        return add_up(_operations(trace), told["scopes"], told["steps"])
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(f"the trace in '{folder}' cannot be read: {error}") from None


def add_up(seconds: Mapping[str, float], scopes: Mapping[str, str], steps: int) -> Profile | None:
    """Parts from seconds by instruction and the scopes of instructions; None where nothing of the step was traced."""
    forward, backward = defaultdict[str, float](float), defaultdict[str, float](float)
    for name, spent in seconds.items():
        if name not in scopes:
            # Of another program than the step, or one that has no scope at all.
            continue
        path = scopes[name]
        (backward if _BACKWARD in path else forward)[innermost(path)] += spent / steps
    total = sum(forward.values()) + sum(backward.values())
    if not total:
        return None
    found = sorted({*forward, *backward}, key=lambda scope: -forward[scope] - backward[scope])
    parts = [Part(each, forward[each], backward[each], (forward[each] + backward[each]) / total) for each in found]
    return Profile(steps, tuple(parts))


def innermost(path: str) -> str:
    """The last of the known scopes in an instruction's path, such as jit(step)/gradients/transpose(jvp(mlp))/dot."""
    known = [name for name in _NAMES.findall(path) if name in SCOPES]
    return SCOPES[known[-1]] if known else OTHERS


def _operations(trace: Any) -> dict[str, float]:
    """Seconds of each instruction of the program `step`, without those of instructions inside of it."""
    spent = defaultdict[str, float](float)
    for plane in trace.planes:
        for line in plane.lines:
            for name, nanoseconds in own_time(_instructions(line.events)):
                spent[name] += nanoseconds * 1e-9
    return dict(spent)


def _instructions(events: Iterable[Any]) -> Iterator[tuple[str, float, float]]:
    """Name, start and end of events that are instructions of the step."""
    for event in events:
        told = dict(event.stats)
        if "hlo_op" in told and str(told.get("hlo_module", "jit_step")).startswith("jit_step"):
            yield str(told["hlo_op"]), event.start_ns, event.start_ns + event.duration_ns


def own_time(events: Iterable[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """What each event of a line took beside the events inside of it: a loop contains its body.

    Args:
      events: name, start, end.
    """
    open_events: list[list[Any]] = []

    def close(until: float) -> Iterator[tuple[str, float]]:
        while open_events and open_events[-1][1] <= until:
            name, _, own = open_events.pop()
            yield name, own

    # Of events that begin together the longest is outside.
    for name, start, end in sorted(events, key=lambda event: (event[1], -event[2])):
        yield from close(start)
        if open_events:
            open_events[-1][2] -= min(end, open_events[-1][1]) - start
        open_events.append([name, end, end - start])
    yield from close(float("inf"))
