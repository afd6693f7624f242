"""Loss sums against numpy in float64, with padding, and cut into microbatches."""

import math
import re
from functools import partial

import jax
import numpy as np
import pytest

from pathways_lm.config import TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.models.batch import Batch
from pathways_lm.train.losses import loss_sums
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.step import gradient_sums

# No token: each row is one document.
END = -1


def batch() -> np.ndarray:
    """Eight rows with 10, 9 ... 3 tokens before their padding: microbatches have unequal numbers of tokens."""
    tokens = np.random.default_rng(5).integers(1, 264, (8, 10), dtype=np.int32)
    for row in range(8):
        tokens[row, 10 - row :] = 0
    return tokens


def sums(model, params, tokens):
    placed = jax.device_put(causal(tokens, END), model.rules("batch", None))
    return jax.device_get(jax.jit(partial(loss_sums, model, POLICIES["fp32"]))(params, placed)[1])


def test_sums_are_those_of_numpy(make, draw):
    """Each token scored from the logits after the one before it; the first from those after token 0."""
    model, tokens = make(), batch()
    params = draw(model)
    shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    placed = jax.device_put(Batch(shifted, tokens), model.rules("batch", None))
    logits = np.asarray(jax.jit(lambda p, b: model.bind(p)(b).logits_BLV)(params, placed), np.float64)
    nll = log_z_squared = count = 0
    for row in range(8):
        for at in range(10 - row):
            log_z = np.log(np.exp(logits[row, at]).sum())
            nll += log_z - logits[row, at, tokens[row, at]]
            log_z_squared += log_z**2
            count += 1
    actual = sums(model, params, tokens)
    np.testing.assert_allclose(actual.nll, nll, rtol=1e-6)
    np.testing.assert_allclose(actual.log_z_squared, log_z_squared, rtol=1e-6)
    assert actual.tokens == count == 52


def test_padding_weighs_nothing(make, draw):
    """Three more tokens of padding to each row, and a row of nothing else."""
    model, tokens = make(), batch()
    params = draw(model)
    padded = np.pad(tokens, ((0, 1), (0, 3)))
    np.testing.assert_allclose(sums(model, params, padded)[:3], sums(model, params, tokens)[:3], rtol=1e-6)


@pytest.fixture(scope="module")
def at_once(make, draw):
    return gradients(make, draw, 1)


def gradients(make, draw, microbatches):
    model = make()
    tokens = jax.device_put(causal(batch(), END), model.rules("batch", None))
    config = TrainConfig(num_steps=1, microbatches=microbatches)
    return jax.device_get(jax.jit(partial(gradient_sums, model, config))(draw(model), tokens, None))


def length(tree) -> float:
    return np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in jax.tree.leaves(tree)))


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_change_nothing(make, draw, at_once, microbatches):
    grads, actual = gradients(make, draw, microbatches)
    np.testing.assert_allclose(actual[:3], at_once[1][:3], rtol=1e-6)
    # By length, not by element: in fp32 a sum of hundreds of terms in another order differs in the last bits.
    error = jax.tree.map(lambda a, e: np.linalg.norm(a - e) / np.linalg.norm(e), grads, at_once[0])
    assert max(jax.tree.leaves(error)) <= 1e-6
    np.testing.assert_allclose(length(grads), length(at_once[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("preset", "data", "tensor"), [("palm_2d", 2, 4), ("tensor_parallel", 2, 4), ("sequence_parallel", 1, 8)]
)
def test_no_array_is_larger_than_a_devices_logits(make, preset, data, tensor):
    """Forward and backward pass, where logits are the largest: gathered ones would be `tensor` times as large."""
    model = make(preset, data, tensor, vocab_size=4096)
    B, L, V = 8, 64, 4096
    rows = Batch(*[jax.ShapeDtypeStruct((B, L), np.int32, sharding=model.rules("batch", None))] * 2)
    compute = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1)))
    program = compute.lower(model.abstract, rows, None).compile().as_text()
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", program)
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == B * L * V // (data * tensor)
