"""What an optimizer knows of each parameter besides its numbers."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from pathways_lm.checked import parse_patterns
from pathways_lm.config import OptimizerConfig
from pathways_lm.config.optimizer import parse_rates
from pathways_lm.models.model import Model, Params
from pathways_lm.models.patterns import check_patterns, fits

# The model dimension of a kernel or table; all its other dimensions are its inputs or its outputs.
MODEL = ("embed", "expert_embed")


@dataclass(frozen=True)
class Treatment:
    """How one parameter, an array or a stack of arrays, is to be moved."""

    path: str
    """Names from the model down, between slashes."""
    stack: tuple[int, ...]
    """The dimensions that count arrays: layers and experts."""
    rows: tuple[int, ...]
    """Of a matrix, the model dimension; else empty."""
    columns: tuple[int, ...]
    """Of a matrix, its other dimensions, which may be several; else empty."""
    own: tuple[int, ...]
    """All dimensions of one array."""
    in_blocks: bool
    """Whether layers are among what it stacks."""
    rate: float
    """Times the schedule's rate."""
    shrinks: bool
    """Whether its weights decay."""

    @property
    def name(self) -> str:
        """Its own name within its module."""
        return self.path.rsplit("/", 1)[-1]


def treatments(config: OptimizerConfig, model: Model) -> Params:
    """A `Treatment` for each parameter. Raises ConfigError for a pattern that fits none."""
    rates, undecayed = parse_rates(config.rates), parse_patterns("optimizer.undecayed", config.undecayed)

    def treat(keys: tuple[Any, ...], variable: nnx.Variable) -> Treatment:
        path = "/".join(str(key.key) for key in keys)
        dims = tuple(variable.dims)
        lead = len(variable.get_value().shape) - len(dims)
        stack = (*range(lead), *(lead + place for place, name in enumerate(dims) if name == "expert"))
        own = tuple(place for place in range(lead + len(dims)) if place not in stack)
        rows = tuple(place for place in own if dims[place - lead] in MODEL)
        columns = tuple(place for place in own if place not in rows) if rows else ()
        factor = next((factor for pattern, factor in rates if fits(pattern, path)), 1.0)
        kept = any(fits(pattern, path) for pattern in undecayed)
        plain = config.name != "adafactor" and path.endswith(("scale", "bias"))
        return Treatment(path, stack, rows, columns, own, lead > 0, factor, not (kept or plain))

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    found: Params = nnx.to_pure_dict(jax.tree_util.tree_map_with_path(treat, model.variables, is_leaf=is_variable))
    paths = [treatment.path for treatment in jax.tree.leaves(found)]
    check_patterns("optimizer.rates", [pattern for pattern, _ in rates], paths)
    check_patterns("optimizer.undecayed", undecayed, paths)
    return found
