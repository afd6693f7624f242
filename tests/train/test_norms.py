"""Norms of groups against numpy's."""

import jax
import numpy as np
import pytest

from pathways_lm.config import MoEConfig
from pathways_lm.train.norms import roots, squares, total


@pytest.mark.parametrize("layout", [("palm_2d", 2, 4), ("fsdp", 8, 1)])
def test_by_hand(make, draw, layout):
    model = make(*layout, num_layers=3)
    params = draw(model, 1)
    found = jax.device_get(jax.jit(lambda tree: squares(model, tree))(params))
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    layers = [leaf for path, leaf in leaves.items() if "layers" in path]
    by_layer = [np.sqrt(sum(np.sum(np.square(leaf[layer], dtype=np.float64)) for leaf in layers)) for layer in range(3)]
    np.testing.assert_allclose(roots(found)["decoder/layers"], by_layer, rtol=1e-6)
    table = leaves["['embedding']['table']"]
    np.testing.assert_allclose(roots(found)["embedding"], np.linalg.norm(table.astype(np.float64)), rtol=1e-6)
    assert set(found) == {"decoder/layers", "decoder/norm", "embedding"}
    everything = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves.values()))
    np.testing.assert_allclose(total(found), everything, rtol=1e-6)


def test_unlike_layers_are_told_apart(make):
    model = make("palm_2d", 2, 4, num_layers=4, block="pre_norm", moe=MoEConfig(num_experts=4))
    names = set(jax.eval_shape(lambda tree: squares(model, tree), model.abstract))
    assert {"decoder/layers/block_0", "decoder/layers/block_1"} <= names
