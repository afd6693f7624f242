"""A model's parameters by their dimensions' names, and what of each lies on one device."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import jax
from flax import nnx

from pathways_lm.config import MeshConfig, ModelConfig, OptimizerConfig
from pathways_lm.mesh import abstract_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import NAMES, STORED, Rules, make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state, parameter_names

_FP32 = 4
_WIDE_NAMES = ("scale", "bias", "router")
"""What stays fp32 in arithmetic (`train.precision`)."""


@dataclass(frozen=True)
class Parameter:
    """An array of a model, layers of one kind together."""

    path: str
    sizes: tuple[int, ...]
    """Of one layer."""
    dims: tuple[str, ...]
    layers: int
    """How many layers have one; 1 outside of towers."""
    tokens: tuple[str, ...]
    """The dimensions of activations over which its gradient sums; empty where devices add gradients at once."""

    @property
    def product(self) -> bool:
        """Whether it enters matrix products or lookups of tokens only."""
        return bool(self.tokens)

    @cached_property
    def tower(self) -> str:
        """`encoder` or `decoder`, or empty for what belongs to neither's layers."""
        return self.path.split("/")[0] if "/blocks/" in self.path else ""

    @cached_property
    def name(self) -> str:
        """Its own name within its module."""
        return self.path.rsplit("/", 1)[-1]

    @cached_property
    def module(self) -> str:
        """The name of its module."""
        return self.path.split("/")[-2]

    @cached_property
    def is_expert(self) -> bool:
        """Whether each expert has its own."""
        return "expert" in self.dims

    @property
    def contracted(self) -> int:
        """How many of `dims` a product sums over, the experts' apart: those before the output's."""
        return len(self.dims) - 1 - self.is_expert if self.name in ("out", "down") else 1

    def item_bytes(self, compute_bytes: int) -> int:
        """Of a number of it in arithmetic."""
        return _FP32 if self.name in _WIDE_NAMES else compute_bytes


@lru_cache(maxsize=64)
def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of a model."""
    found = []
    for path, variable in nnx.to_flat_state(neutral_model(config).variables):
        shape, dims = variable.get_value().shape, tuple(variable.dims)
        lead = len(shape) - len(dims)
        layers = math.prod(shape[:lead])
        found.append(Parameter("/".join(map(str, path)), shape[lead:], dims, layers, tuple(variable.tokens)))
    return tuple(found)


@lru_cache(maxsize=64)
def moments(config: ModelConfig, optimizer: OptimizerConfig) -> Mapping[str, tuple[tuple[tuple[int, ...], int], ...]]:
    """By parameter: of each of an optimizer's moments the sizes, as one layer's, and bytes of a number."""
    model = neutral_model(config)
    state = abstract_state(model, make_optimizer(optimizer, make_schedule(optimizer, 1, 1), model))
    found: dict[str, list[tuple[tuple[int, ...], int]]] = {each.path: [] for each in parameters(config)}
    dims = {each.path: len(each.dims) for each in parameters(config)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer):
        if leaf.shape:
            name = "/".join(parameter_names(path))
            found[name].append((leaf.shape[-dims[name] :], leaf.dtype.itemsize))
    return {name: tuple(each) for name, each in found.items()}


@lru_cache(maxsize=64)
def _model(config: ModelConfig) -> Model:
    return Model(config, make_rules("palm_2d", abstract_mesh(MeshConfig())))


def neutral_model(config: ModelConfig) -> Model:
    """The model on one device, which cuts nothing; one for all that its parameters do not depend on."""
    return _model(replace(config, remat="none", unroll=1, moe=replace(config.moe, dispatch="einsum")))


class Cuts:
    """Into how many parts dimensions are cut by some rules."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.mesh: Mapping[str, int] = dict(rules.mesh.shape)
        self.parts = {name: rules.parts(name) for name in NAMES}
        self._sizes: dict[str, tuple[int, ...]] = {}

    def sizes(self, parameter: Parameter) -> tuple[int, ...]:
        """A device's part of each dimension of one layer, as it enters products: whole along what ZeRO cuts."""
        if parameter.path not in self._sizes:
            named = zip(parameter.sizes, parameter.dims, strict=True)
            told = tuple(size if name in STORED else self.part(size, name) for size, name in named)
            self._sizes[parameter.path] = told
        return self._sizes[parameter.path]

    def used(self, parameter: Parameter) -> int:
        """Numbers of one layer that a device's products need."""
        return math.prod(self.sizes(parameter))

    def stored(self, parameter: Parameter) -> int:
        """Numbers of one layer that lie on a device between steps."""
        return math.prod(self.part(size, name) for size, name in zip(parameter.sizes, parameter.dims, strict=True))

    def layers(self, parameter: Parameter) -> int:
        """Layers of it on a device: those of its stage."""
        return -(-parameter.layers // self.parts["stage"]) if parameter.tower else parameter.layers

    def part(self, size: int, name: str) -> int:
        """A device's part of a dimension as it is stored."""
        parts = self.parts[name]
        # Heads of keys and values that are fewer than their parts lie whole on every device.
        if name == "heads" and (size == 1 or size % parts):
            return size
        return -(-size // parts)

    def axes(self, *names: str) -> tuple[str, ...]:
        """The mesh axes of more than one device that any of these dimensions is cut along, in the mesh's order."""
        wanted = {axis for name in names for axis in self.rules.axes(name)}
        return tuple(axis for axis, size in self.mesh.items() if axis in wanted and size > 1)

    def gathered(self, parameter: Parameter) -> tuple[str, ...]:
        """The axes along which ZeRO cuts a parameter."""
        return self.axes(*(name for name in parameter.dims if name in STORED))

    def summed(self, parameter: Parameter) -> tuple[str, ...]:
        """The axes along which devices have the same of a parameter as stored, and other tokens: its gradient is
        added over them."""
        taken = set(self.axes(*parameter.dims))
        return tuple(axis for axis in self.axes(*parameter.tokens) if axis not in taken)

    def size(self, axes: tuple[str, ...]) -> int:
        """Devices along these axes."""
        return math.prod(self.mesh[axis] for axis in axes)
