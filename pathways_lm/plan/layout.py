"""What of an experiment may be chosen to suit a machine: the model and its batches stay as they are."""

import dataclasses
import math
from dataclasses import dataclass, fields, replace
from typing import Any

from pathways_lm.config import Experiment, TrainConfig
from pathways_lm.mesh import AXES, CONTEXT, DATA, EXPERT, POD, STAGE, TENSOR

# Where each choice stands in a config, besides the sizes of the axes.
_PLACES = {
    "rules": ("mesh", "rules"),
    "zero": ("mesh", "zero"),
    "microbatches": ("train", "microbatches"),
    "schedule": ("train", "schedule"),
    "chunks": ("train", "chunks"),
    "precision": ("train", "precision"),
    "remat": ("model", "remat"),
}
_OF_PIPELINES = ("schedule", "chunks")
# Configs without these fields know no pipelines.
PIPELINES = {field.name for field in fields(TrainConfig)}.issuperset(_OF_PIPELINES)


@dataclass(frozen=True)
class Layout:
    """A mesh with what lies on it, and how a step goes through a batch."""

    sizes: tuple[int, ...]
    """Of the axes, in the order of `mesh.AXES`."""
    rules: str
    zero: int
    microbatches: int
    remat: str
    precision: str
    dispatch: str = ""
    """How tokens reach experts; empty without experts."""
    schedule: str = "1f1b"
    """Of a pipeline's stages: `gpipe` or `1f1b`."""
    chunks: int = 1
    """Runs of layers that each stage has, one after the other."""

    def __getitem__(self, axis: str) -> int:
        return self.sizes[AXES.index(axis)]

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def bubble(self) -> float:
        """Idle time of stages as a share of their work: (p - 1) / (v m) (arXiv:2104.04473, section 2.2)."""
        return (self[STAGE] - 1) / (self.chunks * self.microbatches)


def layout_of(experiment: Experiment, sizes: tuple[int, ...]) -> Layout:
    """The layout that a config asks for, with these sizes of its axes."""
    values = {name: getattr(getattr(experiment, section), field, None) for name, (section, field) in _PLACES.items()}
    told: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    dispatch = experiment.model.moe.dispatch if experiment.model.moe.num_experts else ""
    return Layout(sizes=sizes, dispatch=dispatch, **told)


def overrides(experiment: Experiment, layout: Layout) -> list[str]:
    """What `--set` must change in the config for this layout."""
    wanted: dict[str, Any] = dict(zip((f"mesh.{axis}" for axis in AXES), layout.sizes, strict=True))
    for name, (section, field) in _PLACES.items():
        if name not in _OF_PIPELINES or layout[STAGE] > 1:
            wanted[f"{section}.{field}"] = getattr(layout, name)
    if layout.dispatch:
        wanted["model.moe.dispatch"] = layout.dispatch
    # An axis of -1 fills up by itself.
    return [f"{name}={value}" for name, value in wanted.items() if _value(experiment, name) not in (value, -1)]


def _value(experiment: Experiment, name: str) -> Any:
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def laid_out(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment in this layout. Raises ConfigError where its parts do not go together."""
    changed: dict[str, dict[str, Any]] = {"mesh": dict(zip(AXES, layout.sizes, strict=True)), "model": {}, "train": {}}
    for name, (section, field) in _PLACES.items():
        if name not in _OF_PIPELINES or layout[STAGE] > 1:
            changed[section][field] = getattr(layout, name)
    if layout.dispatch:
        changed["model"]["moe"] = replace(experiment.model.moe, dispatch=layout.dispatch)
    sections = {section: replace(getattr(experiment, section), **values) for section, values in changed.items()}
    return dataclasses.replace(experiment, **sections)


def in_words(layout: Layout) -> str:
    """As `data 32, tensor 8, sequence_parallel, ZeRO 1, remat block, 4 microbatches`."""
    parts = [f"{axis} {layout[axis]}" for axis in (POD, STAGE, DATA, EXPERT, CONTEXT, TENSOR) if layout[axis] > 1]
    several = "es" if layout.microbatches > 1 else ""
    parts += [
        layout.rules,
        f"ZeRO {layout.zero}",
        f"{layout.microbatches} microbatch{several}",
        f"remat {layout.remat}",
    ]
    if layout.dispatch:
        parts.append(layout.dispatch)
    if layout[STAGE] > 1:
        parts += [layout.schedule, f"{layout.chunks} chunks"]
    return ", ".join(parts)
