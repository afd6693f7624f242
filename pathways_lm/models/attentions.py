"""What a training step attends by, told before it is compiled."""

from functools import partial

import jax

from pathways_lm.kernels.choice import Asked, Choice, choose
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model


def asked_of(model: Model, batch: Batch, half: bool) -> dict[str, Asked]:
    """What attention must do in training: by tower, and `cross` for a decoder's look at its encoder.

    Args:
      batch: arrays, or what they look like; all of it is one microbatch.
      half: whether the arithmetic is in bf16 or fp16.
    """
    shape, rows = model.bind(model.abstract), batch.tokens.shape[0]
    described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    places = {name: jax.eval_shape(partial(shape.places, name), described) for name in shape.towers}
    asked = {}
    for name in shape.towers:
        tower = getattr(shape, name)
        asked[name] = tower.asked(rows, places[name], places[name], trains=True, half=half)
    if len(places) > 1:
        asked["cross"] = shape.decoder.asked(
            rows, places["decoder"], places["encoder"], trains=True, cross=True, half=half
        )
    return asked


def attentions(model: Model, batch: Batch, microbatches: int, half: bool) -> dict[str, Choice]:
    """The attentions of a training step, by the names of `asked_of`.

    Raises ConfigError where `model.attention` names one that cannot serve.
    """
    found = {}
    for name, asked in asked_of(model, batch, half).items():
        asked = asked._replace(rows=asked.rows // microbatches)
        found[name] = choose(model.config, model.rules, asked, strict=True)
    return found


def told(found: dict[str, Choice]) -> str:
    """In one line."""
    if len(set(found.values())) == 1:
        return f"attention: {next(iter(found.values()))}"
    return "attention: " + "; ".join(f"{name}: {choice}" for name, choice in found.items())
