"""What of an experiment may be chosen to suit a machine: the model and its batches stay as they are."""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

from pathways_lm.config import Experiment
from pathways_lm.mesh import AXES, CONTEXT, DATA, EXPERT, POD, STAGE, TENSOR

# Where each choice stands in a config, besides the sizes of the axes.
_PLACES = {
    "rules": ("mesh", "rules"),
    "zero": ("mesh", "zero"),
    "microbatches": ("train", "microbatches"),
    "schedule": ("train", "pipeline"),
    "chunks": ("mesh", "chunks"),
    "attention": ("mesh", "context_attention"),
    "precision": ("train", "precision"),
    "remat": ("model", "remat"),
}
# Choices that make a difference along one axis only, and stay as they are where it has one device.
_ALONG = {"schedule": STAGE, "chunks": STAGE, "attention": CONTEXT}


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
    attention: str = "gather"
    """Of devices that share a sequence: `gather` or `ring`."""

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
    told: dict[str, Any] = {
        name: getattr(getattr(experiment, section), field) for name, (section, field) in _PLACES.items()
    }
    dispatch = experiment.model.moe.dispatch if experiment.model.moe.num_experts else ""
    return Layout(sizes=sizes, dispatch=dispatch, **told)


def overrides(experiment: Experiment, layout: Layout) -> list[str]:
    """What `--set` must change in the config for this layout."""
    wanted: dict[str, Any] = dict(zip((f"mesh.{axis}" for axis in AXES), layout.sizes, strict=True))
    for name, (section, field) in _PLACES.items():
        wanted[f"{section}.{field}"] = _chosen(layout, name)
    if layout.dispatch:
        wanted["model.moe.dispatch"] = layout.dispatch
    # An axis of -1 fills up by itself.
    return [
        f"{name}={value}"
        for name, value in wanted.items()
        if value is not None and _value(experiment, name) not in (value, -1)
    ]


def _chosen(layout: Layout, name: str) -> Any:
    """The choice, or None where it makes no difference. Chunks are for stages only: without them there is one."""
    if name in _ALONG and layout[_ALONG[name]] == 1:
        return 1 if name == "chunks" else None
    return getattr(layout, name)


def _value(experiment: Experiment, name: str) -> Any:
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def laid_out(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment in this layout. Raises ConfigError where its parts do not go together."""
    changed: dict[str, dict[str, Any]] = {"mesh": dict(zip(AXES, layout.sizes, strict=True)), "model": {}, "train": {}}
    for name, (section, field) in _PLACES.items():
        if (value := _chosen(layout, name)) is not None:
            changed[section][field] = value
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
        parts.append(layout.schedule + (f" in {layout.chunks} chunks" if layout.chunks > 1 else ""))
    if layout[CONTEXT] > 1:
        parts.append(layout.attention)
    return ", ".join(parts)
