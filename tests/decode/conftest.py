"""Models that write, and what they say of a whole text without a cache."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

from pathways_lm.config.model import MoEConfig
from pathways_lm.decode.form import Form
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model

T5 = {"shape": "encoder_decoder", "block": "pre_norm", "norm": "rms", "positions": "relative", "num_kv_heads": 8}
EXPERTS = MoEConfig(num_experts=4, top_k=2, every=2, dispatch="dropless")
# Twelve ids, of which padding is never written and 1 is the end: the vocabulary is tiny, so that the end is met.
FORM = Form(12, 1)
WRITERS = {
    "decoder": ({}, {"num_layers": 2}, FORM),
    "prefix": ({"data": 4, "tensor": 2}, {"num_layers": 2}, FORM._replace(both_ways=True, closing=(1,))),
    "encoder": ({"data": 2, "tensor": 4}, {**T5, "num_layers": 2}, FORM._replace(encoder=True, closing=(1,))),
    "experts": (
        {"data": 2, "expert": 2, "tensor": 2},
        {"num_layers": 2, "block": "pre_norm", "positions": "relative_per_layer", "moe": EXPERTS},
        FORM,
    ),
}
LONGEST = 64


class Writer(NamedTuple):
    """A model that writes."""

    model: Model
    params: dict
    form: Form
    says: Callable[[list[int], list[int]], tuple[np.ndarray, np.ndarray]]
    """Prompt and continuation -> what the last layer says of each token that the decoder reads, [L, D], and
    log-probabilities of the next token, -inf for what is never written; the whole text at once."""


@pytest.fixture(scope="session")
def writer(make, draw) -> Callable[[str], Writer]:
    """One of `WRITERS`."""
    made: dict[str, Writer] = {}

    def get(name: str) -> Writer:
        if name not in made:
            mesh, changes, form = WRITERS[name]
            model = make(**mesh, **changes)
            # Twice as large as they are drawn: that tokens differ.
            params = jax.tree.map(lambda leaf: 2 * leaf, draw(model, 1))
            made[name] = Writer(model, params, form, whole_text(model, params, form))
        return made[name]

    return get


def whole_text(model: Model, params: dict, form: Form):
    rows = model.rules.parts("batch")
    place = lambda array: jax.device_put(array, model.rules("batch", None))  # noqa: E731

    @jax.jit
    def call(params, batch):
        module = model.bind(params)
        output, x_BLD = module.through(batch, None, False)
        return module.decoder.close(x_BLD), output.logits_BLV

    def padded(ids, fill=0):
        row = np.full((rows, LONGEST), fill, np.int32)
        row[:, : len(ids)] = ids
        return row

    def says(prompt, written):
        read = [*prompt, *form.closing]
        text = [0, *written] if form.encoder else [0, *read, *written]
        # Padding stands behind the text, where no position of it looks.
        batch = Batch(place(padded(text)), None)
        if form.encoder:
            batch = batch._replace(encoder_tokens=place(padded(read)), encoder_segments=place(padded([1] * len(read))))
        elif form.both_ways:
            batch = batch._replace(prefix=place(padded([1] * (len(read) + 1)).astype(bool)))
        x_BLD, logits_BLV = (np.asarray(array, np.float64) for array in call(params, batch))
        logits = logits_BLV[0, len(text) - 1, : form.size]
        logits[0] = -np.inf
        return x_BLD[0, : len(text)], logits - np.log(np.sum(np.exp(logits)))

    return says
