"""Nats and bits against numpy, from the model's logits."""

import jax
import numpy as np
import pytest

from pathways_lm.data.objectives import causal
from pathways_lm.evaluate.perplexity import Perplexity
from pathways_lm.models.batch import Batch

# No token: each row is one document.
END = -1


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    """Two batches: one full, one that ends within a row and holds rows of padding after it."""
    random = np.random.default_rng(3)
    full, last = random.integers(1, 264, (2, 8, 12), dtype=np.int32)
    last[3, 5:] = 0
    last[4:] = 0
    return [full, last]


@pytest.fixture(scope="module")
def batches(rows) -> list[Batch]:
    return [causal(batch, END) for batch in rows]


@pytest.fixture(scope="module")
def expected(make, draw, rows) -> dict[str, float]:
    """From the model's logits, which tests/models compares with numpy."""
    model = make()
    call = jax.jit(lambda params, tokens: model.bind(params)(Batch(tokens, tokens)).logits_BLV)
    nll, tokens = 0.0, 0
    for batch in rows:
        inputs = np.concatenate([np.zeros((8, 1), np.int32), batch[:, :-1]], axis=1)
        logits = np.asarray(call(draw(model), inputs), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for row, column in zip(*np.nonzero(batch), strict=True):
            nll -= log_p[row, column, batch[row, column]]
            tokens += 1
    assert tokens == 96 + 36 + 5
    return {"loss": nll / tokens, "bits_per_byte": nll / np.log(2) / 1000}


@pytest.mark.parametrize(
    ("preset", "data", "tensor", "context"),
    [("palm_2d", 1, 1, 1), ("palm_2d", 2, 4, 1), ("fsdp", 8, 1, 1), ("sequence_parallel", 2, 2, 2)],
)
def test_loss_and_bits_per_byte(make, draw, batches, expected, preset, data, tensor, context):
    model = make(preset, data, tensor, context=context)
    found = Perplexity(model, "fp32")(draw(model), batches, num_bytes=1000)
    assert found == pytest.approx(expected, rel=1e-5)


def test_rows_of_padding_do_not_count(make, draw, batches):
    model = make()
    perplexity, params = Perplexity(model, "fp32"), draw(model)
    nothing = causal(np.zeros((8, 12), np.int32), END)
    assert perplexity(params, [*batches, nothing], 1000) == perplexity(params, batches, 1000)


def test_an_even_guess(make, draw):
    """A table of zeros gives every row of the vocabulary the same probability: log2(264) bits a token."""
    model = make()
    params = draw(model)
    params["embedding"]["table"] = 0 * params["embedding"]["table"]
    found = Perplexity(model, "fp32")(params, [causal(np.full((8, 12), 9, np.int32), END)], num_bytes=96)
    assert found == pytest.approx({"loss": np.log(264), "bits_per_byte": np.log2(264)}, rel=1e-6)


def test_half_precision_is_near(make, draw, batches, expected):
    model = make()
    found = Perplexity(model, "bf16")(draw(model), batches, num_bytes=1000)
    assert found == pytest.approx(expected, rel=2e-2)
    assert found["loss"] != expected["loss"]
