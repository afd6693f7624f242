"""Which part of which of our arrays each tensor of a published checkpoint is."""

from dataclasses import dataclass
from typing import Any

from pathways_lm.config import ModelConfig
from pathways_lm.convert.families import FAMILIES, Family, Row
from pathways_lm.convert.layout import Layout
from pathways_lm.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """A slice of one of our arrays: `array[index]`."""

    path: str
    index: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A foreign tensor, and the parts of ours that it holds side by side."""

    name: str
    parts: tuple[Part, ...]
    layout: Layout
    shape: tuple[int, ...]
    """As it is in the foreign checkpoint."""
    our_shape: tuple[int, ...]
    """Of the layout's right side."""


def plan(family: Family, config: ModelConfig, shapes: Shapes, vocab_rows: int) -> list[Tensor]:
    """Every foreign tensor of a model, and by them every one of our arrays once.

    Args:
      shapes: path -> shape of our arrays.
      vocab_rows: rows of the foreign vocabulary; ours may have more.

    Raises:
      CheckpointError: an array of the model has no name in this format.
    """
    tensors = [_tensor(row, row.foreign, "", (), shapes, vocab_rows) for row in family.rows]
    for tower, rows in family.layers.items():
        encoder = tower == "encoder" and config.shape == "encoder_decoder"
        layers = config.num_encoder_layers or config.num_layers if encoder else config.num_layers
        for layer in range(layers):
            prefix, index = place(config, tower, layer)
            for row in rows:
                experts = range(config.moe.num_experts) if "{expert}" in row.foreign else [None]
                for expert in experts:
                    name = row.foreign.replace("{layer}", str(layer)).replace("{expert}", str(expert))
                    within = index if expert is None else (*index, expert)
                    tensors.append(_tensor(row, name, prefix, within, shapes, vocab_rows))
    # Rows of arrays that this model does not have; of two rows for one array, the one its activation makes sense of.
    found = [tensor for tensor in tensors if tensor is not None and not _shadowed(tensor, shapes)]
    covered = {part.path for tensor in found for part in tensor.parts}
    if missing := sorted(set(shapes) - covered):
        raise CheckpointError(f"a {family.model_type} checkpoint has no place for: {', '.join(missing)}")
    return found


def place(config: ModelConfig, tower: str, layer: int) -> tuple[str, tuple[int, ...]]:
    """Where a tower's layer lies: the path of its block, and its number in the stack."""
    every = config.moe.every if config.moe.num_experts else 1
    block = f"block_{layer % every}/" if every > 1 else ""
    return f"{tower}/blocks/layers/{block}", (layer // every,)


def _tensor(row: Row, name: str, prefix: str, index: tuple[int, ...], shapes: Shapes, vocab_rows: int) -> Tensor | None:
    paths = (row.ours,) if isinstance(row.ours, str) else row.ours
    parts = tuple(Part(prefix + path, index) for path in paths)
    if any(part.path not in shapes for part in parts):
        return None
    layout = Layout.parse(row.layout)
    shape = shapes[parts[0].path][len(index) :]
    our_shape = shape if len(parts) == 1 else (len(parts), *shape)
    our_shape = tuple(
        vocab_rows if letter == "v" else size for letter, size in zip(layout.ours, our_shape, strict=True)
    )
    return Tensor(name, parts, layout, layout.foreign_shape(our_shape), our_shape)


def _shadowed(tensor: Tensor, shapes: Shapes) -> bool:
    """An ungated `wi` stands for no array of a gated model, nor `wi_1` for one of an ungated model."""
    (path, *_) = (part.path for part in tensor.parts)
    gated = path.rpartition("/")[0] + "/gate" in shapes
    return (tensor.name.endswith(".wi.weight") and gated) or (tensor.name.endswith(".wi_1.weight") and not gated)


def family_of(config: ModelConfig) -> Family:
    """The format that a model of ours can be written in. Raises CheckpointError where there is none."""
    if config.shape == "encoder_decoder" and config.positions == "relative":
        return FAMILIES["switch_transformers" if config.moe.num_experts else "t5"]
    if config.shape == "encoder" and config.block == "post_norm":
        return FAMILIES["bert"]
    if config.shape == "decoder" and config.block == "pre_norm" and config.positions == "learned":
        return FAMILIES["gpt2"]
    if config.shape == "decoder" and config.positions == "rotary" and config.norm == "rms":
        return FAMILIES["mixtral" if config.moe.num_experts else "llama"]
    said = f"shape={config.shape!r}, block={config.block!r}, positions={config.positions!r}, norm={config.norm!r}"
    raise CheckpointError(f"no format of Hugging Face that is known here says a model of {said}")


def check_expressible(family: Family, config: ModelConfig, foreign: dict[str, Any]) -> None:
    """Raises CheckpointError naming the fields that would come back as others."""
    tensors = set() if config.tied_head else {"lm_head.weight"}
    back = family.from_foreign(foreign, tensors)
    fields = (
        "block", "norm", "norm_scale", "norm_bias", "bias", "activation", "positions", "head_dim", "num_kv_heads",
        "scaled_attention", "tied_head", "scaled_logits", "pooler",
    )  # fmt: skip
    lost = [
        f"model.{name}={getattr(config, name)!r}" for name in fields if getattr(back, name) != getattr(config, name)
    ]
    moe_fields = ("top_k", "renormalise", "extra_dense", "every")
    if config.moe.num_experts:
        lost += [
            f"model.moe.{name}={getattr(config.moe, name)!r}"
            for name in moe_fields
            if getattr(back.moe, name) != getattr(config.moe, name)
        ]
    if lost:
        raise CheckpointError(f"a {family.model_type} checkpoint cannot say {', '.join(lost)}")
