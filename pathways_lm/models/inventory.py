"""A model's parameters as a table: path, shape, sharding, count, initial spread."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from flax import nnx

from pathways_lm.models.model import Model
from pathways_lm.sharding import on_mesh


@dataclass(frozen=True)
class Parameter:
    """One array of a model."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    """Its partition spec on the model's mesh."""
    std: float
    """Standard deviation at initialisation; 0 for ones and zeros."""
    count: int


def inventory(model: Model) -> list[Parameter]:
    """Every parameter, in the order the model uses them in a dictionary."""
    rows = []
    for path, variable in nnx.to_flat_state(model.variables):
        value = on_mesh(variable.get_value(), model.rules.mesh)
        spec = f"P({', '.join(map(repr, value.sharding.spec))})"
        name = "/".join(map(str, path))
        rows.append(Parameter(name, value.shape, str(value.dtype), spec, variable.std, math.prod(value.shape)))
    return rows


def num_params(model: Model) -> int:
    """The number of parameters."""
    return sum(row.count for row in inventory(model))


def num_active_params(model: Model, parts: tuple[str, ...] = ()) -> int:
    """The parameters that one token is multiplied with: of the experts, those it is sent to.

    Args:
      parts: count only paths that begin so.
    """
    moe = model.config.moe
    rows = [row for row in inventory(model) if not parts or row.path.startswith(parts)]
    return sum(row.count * moe.top_k // moe.num_experts if _is_expert(row.path) else row.count for row in rows)


def _is_expert(path: str) -> bool:
    return "/moe/" in path and not path.endswith("/router")


def as_json(model: Model) -> list[dict[str, Any]]:
    """The table for `parameters.json`."""
    return [asdict(row) for row in inventory(model)]


def as_text(model: Model) -> str:
    """The table for people, with the total below."""
    rows = inventory(model)
    header = ("path", "shape", "spec", "init std", "count")
    cells = [header] + [
        (r.path, str(r.shape), r.spec, f"{r.std:.6g}" if r.std else "constant", f"{r.count:,}") for r in rows
    ]
    cells.append(("total", "", "", "", f"{num_params(model):,}"))
    if model.config.moe.num_experts:
        cells.append(("active", "", "", "", f"{num_active_params(model):,}"))
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
