"""The initial spread of every parameter, measured (PaLM section 5.1)."""

import jax
import numpy as np
import pytest

from pathways_lm.models.inventory import inventory

# Large enough that a sample's spread is known to a percent; every fan-in another.
SIZES = {"num_layers": 2, "embed_dim": 96, "num_heads": 5, "head_dim": 64, "mlp_dim": 640, "vocab_size": 512}
FAN_IN = {"query": 96, "key": 96, "value": 96, "out": 5 * 64, "gate": 96, "up": 96, "down": 640, "table": 1}


@pytest.fixture(scope="module")
def drawn(make):
    model = make(**SIZES)
    return model, {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value, np.float64)
        for path, value in jax.tree_util.tree_leaves_with_path(model.initialise(0))
    }


def test_spread(drawn):
    """N(0, 1 / inputs) for kernels, N(0, 1) for the table, ones for norms; five standard errors of tolerance."""
    _, params = drawn
    for path, value in params.items():
        name = path.rsplit("/", 1)[-1]
        if name == "scale":
            assert np.all(value == 1)
            continue
        std = FAN_IN[name] ** -0.5
        assert abs(value.mean()) < 5 * std / np.sqrt(value.size), path
        assert abs(value.std() / std - 1) < 5 / np.sqrt(2 * value.size), path
        # A normal's fourth moment is 3; a uniform's is 1.8, a truncated one's 2.4 or less.
        assert abs((value**4).mean() / value.var() ** 2 - 3) < 5 * np.sqrt(24 / value.size), path


def test_draws_are_different(drawn):
    """No two arrays, and no two layers of one, come from the same stream."""
    _, params = drawn
    starts = []
    for path, value in params.items():
        if not path.endswith("scale"):
            layers = value if "/blocks/" in path else [value]
            starts += [layer.ravel()[:100] / layer.std() for layer in layers]
    correlation = np.abs(np.corrcoef(starts) - np.eye(len(starts)))
    assert len(starts) == 15
    assert correlation.max() < 0.5


def test_another_seed_is_another_model(drawn):
    model, params = drawn
    again = np.asarray(model.initialise(1)["embedding"]["table"])
    assert not np.any(again == params["embedding/table"])


def test_inventory_tells_the_spread(drawn):
    model, params = drawn
    told = {row.path: (row.std, row.shape) for row in inventory(model)}
    assert told.keys() == params.keys()
    for path, (std, shape) in told.items():
        name = path.rsplit("/", 1)[-1]
        assert shape == params[path].shape
        assert std == pytest.approx(0.0 if name == "scale" else FAN_IN[name] ** -0.5)
