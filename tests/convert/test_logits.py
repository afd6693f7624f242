"""Logits and gradients against transformers' torch models, from the same random weights."""

from contextlib import closing

import jax
import numpy as np
import pytest
import torch

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig
from pathways_lm.convert.convert import _flat, _foreign, _shapes
from pathways_lm.convert.plan import family_of, plan
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules

ENCODER_DECODERS = ("t5", "t5_1_1", "switch")
RANDOM = np.random.default_rng(0)
# Two rows of documents of 7 and 5 tokens, the second row padded behind its first document.
LENGTHS = [(7, 5), (7,)]
LENGTH = 12
TOKENS = RANDOM.integers(2, 300, (2, LENGTH), dtype=np.int32)
READ = RANDOM.integers(2, 300, (2, LENGTH), dtype=np.int32)
SEGMENTS = np.array([[1] * 7 + [2] * 5, [1] * 7 + [0] * 5], np.int32)


@pytest.fixture(scope="module")
def ours(published):
    """Our model and the parameters of the run folder."""
    _, _, folder = published
    config = RunFolder(folder / "run").experiment().model
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    with closing(Store(folder / "run", readonly=True)) as store:
        params = store.restore({"params": model.abstract}, print)[1]["params"]
    return model, params


def documents():
    """Row and slice of each document."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            yield row, slice(start, start + length)
            start += length


def batch(family: str) -> Batch:
    pair = family in ENCODER_DECODERS
    types = np.where(SEGMENTS == 2, 1, 0).astype(np.int32) if family == "bert" else None
    return Batch(
        tokens=TOKENS,
        targets=TOKENS,
        segments=SEGMENTS,
        encoder_tokens=READ if pair else None,
        encoder_segments=SEGMENTS if pair else None,
        token_types=types,
    )


def theirs(family: str, model, row: int, at: slice):
    """Logits of one document by itself."""
    tokens = torch.tensor(TOKENS[row, at][None].astype(np.int64))
    if family in ENCODER_DECODERS:
        read = torch.tensor(READ[row, at][None].astype(np.int64))
        return model(input_ids=read, decoder_input_ids=tokens).logits[0]
    if family == "bert":
        types = torch.full_like(tokens, int(SEGMENTS[row, at.start] == 2))
        return model(input_ids=tokens, token_type_ids=types).prediction_logits[0]
    return model(input_ids=tokens).logits[0]


def error(actual, expected) -> float:
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def test_packed_and_padded(published, ours):
    """Rows that hold several documents and padding: each document as if it were alone."""
    family, torch_model, _ = published
    model, params = ours
    placed = jax.device_put(batch(family), model.rules("batch", None))
    logits = np.asarray(jax.jit(lambda p, b: model.bind(p)(b).logits_BLV)(params, placed))
    for row, at in documents():
        with torch.no_grad():
            expected = theirs(family, torch_model, row, at).numpy()
        assert error(logits[row, at], expected) <= 1e-4


def test_padded_with_a_mask(published, ours):
    """A batch of two lengths in torch with its attention mask, against segments."""
    family, torch_model, _ = published
    model, params = ours
    mask = torch.tensor((SEGMENTS == 1).astype(np.int64))
    tokens = torch.tensor(TOKENS.astype(np.int64))
    given = batch(family)._replace(segments=(SEGMENTS == 1).astype(np.int32), token_types=None)
    with torch.no_grad():
        if family in ENCODER_DECODERS:
            given = given._replace(segments=np.ones_like(SEGMENTS), encoder_segments=(SEGMENTS == 1).astype(np.int32))
            read = torch.tensor(READ.astype(np.int64))
            expected = torch_model(input_ids=read, attention_mask=mask, decoder_input_ids=tokens).logits.numpy()
        elif family == "bert":
            expected = torch_model(input_ids=tokens, attention_mask=mask).prediction_logits.numpy()
        else:
            expected = torch_model(input_ids=tokens, attention_mask=mask).logits.numpy()
    placed = jax.device_put(given, model.rules("batch", None))
    logits = np.asarray(jax.jit(lambda p, b: model.bind(p)(b).logits_BLV)(params, placed))
    seen = np.asarray(given.segments) == 1
    assert error(logits[seen], expected[seen]) <= 1e-4


def test_pooler_and_order(published, ours):
    family, torch_model, _ = published
    if family != "bert":
        pytest.skip("only BERT pools")
    model, params = ours
    given = Batch(TOKENS, TOKENS)
    output = jax.jit(lambda p, b: model.bind(p)(b).order_B2)(params, jax.device_put(given, model.rules("batch", None)))
    with torch.no_grad():
        expected = torch_model(input_ids=torch.tensor(TOKENS.astype(np.int64))).seq_relationship_logits.numpy()
    assert error(np.asarray(output), expected) <= 1e-4


def test_gradients(published, ours):
    """Of a weighted sum of all documents' logits, tensor by tensor under their names."""
    family, torch_model, _ = published
    model, params = ours
    weights = np.random.default_rng(1).normal(size=(2, LENGTH, 300)).astype(np.float32)
    weights *= (SEGMENTS > 0)[:, :, None]

    def loss(params, given):
        return (model.bind(params)(given).logits_BLV * weights).sum()

    placed = jax.device_put(batch(family), model.rules("batch", None))
    grads = jax.device_get(jax.jit(jax.grad(loss))(params, placed))
    torch_model.zero_grad()
    total = sum(
        (theirs(family, torch_model, row, at) * torch.tensor(weights[row, at])).sum() for row, at in documents()
    )
    total.backward()
    found = torch_gradients(torch_model)
    arrays = _flat(grads)
    for tensor in plan(family_of(model.config), model.config, _shapes(model.abstract), 300):
        expected = found[tensor.name]
        actual = _foreign(tensor, arrays)
        # A key's bias moves all scores of a query alike: its gradient is zero, and what is left of it is rounding.
        scale = np.max(np.abs(expected))
        if "key" in tensor.name and tensor.name.endswith("bias"):
            assert np.max(np.abs(actual)) <= 1e-3 and scale <= 1e-3
        else:
            assert np.max(np.abs(actual - expected)) <= 1e-3 * scale, tensor.name


def torch_gradients(torch_model) -> dict[str, np.ndarray]:
    """By the names under which tensors are saved."""
    found = {}
    for name, parameter in torch_model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found[name] = gradient.numpy()
    return {saved: value for name, value in found.items() for saved, value in split(name, value)}


def split(name: str, value: np.ndarray):
    """Experts that transformers holds in one tensor and saves one by one."""
    if name.endswith("mlp.experts.gate_up_proj"):
        base = name.replace("mlp.experts.gate_up_proj", "block_sparse_moe.experts")
        for expert, both in enumerate(value):
            gate, up = np.split(both, 2)
            yield f"{base}.{expert}.w1.weight", gate
            yield f"{base}.{expert}.w3.weight", up
    elif name.endswith("mlp.experts.down_proj"):
        base = name.replace("mlp.experts.down_proj", "block_sparse_moe.experts")
        for expert, down in enumerate(value):
            yield f"{base}.{expert}.w2.weight", down
    elif name.endswith("mlp.gate.weight") and "layers" in name:
        yield name.replace("mlp.gate", "block_sparse_moe.gate"), value
    else:
        yield name, value
