"""What is bf16 under the bf16 policy, and what is not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pathways_lm.config import TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.models.batch import Batch
from pathways_lm.train.precision import POLICIES
from pathways_lm.train.step import gradient_sums


@pytest.mark.parametrize(("name", "kernels"), [("fp32", jnp.float32), ("bf16", jnp.bfloat16)])
def test_cast(make, draw, name, kernels):
    """Norm scales are used in fp32, so they stay."""
    params = draw(make())
    cast = jax.tree_util.tree_leaves_with_path(POLICIES[name].cast(params))
    types = {jax.tree_util.keystr(path): value.dtype for path, value in cast}
    assert types == {path: jnp.float32 if "scale" in path else kernels for path in types}
    assert sum("scale" in path for path in types) == 2


def test_bf16_gradients_are_fp32_and_near(make, draw):
    """bf16 keeps 8 bits: a relative error of 2^-9 in each rounding, so a few percent through three layers."""
    model = make()
    params = draw(model)
    tokens = np.random.default_rng(0).integers(1, 264, (8, 12), dtype=np.int32)
    tokens = jax.device_put(causal(tokens, 7), model.rules("batch", None))
    results = {}
    for name in ("fp32", "bf16"):
        results[name] = jax.jit(partial(gradient_sums, model, TrainConfig(num_steps=1, precision=name)))(
            params, tokens, None
        )
    exact, rough = results["fp32"], results["bf16"]
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(rough[1].nll, exact[1].nll, rtol=1e-2)
    assert rough[1].nll != exact[1].nll
    error = jax.tree.map(lambda r, e: float(jnp.linalg.norm(r - e) / jnp.linalg.norm(e)), rough[0], exact[0])
    assert max(jax.tree.leaves(error)) < 0.05


def test_bf16_products_and_fp32_softmax(make, draw):
    """Read in the traced program: every product of matrices takes bf16, every exponential fp32."""
    model = make()
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32, sharding=model.rules("batch", None))
    forward = jax.jit(
        lambda params, tokens: model.bind(POLICIES["bf16"].cast(params))(Batch(tokens, tokens)).logits_BLV
    )
    found = {"dot_general": set(), "exp": set(), "rsqrt": set(), "cos": set()}

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in found:
                found[equation.primitive.name] |= {str(value.aval.dtype) for value in equation.invars}
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    walk(forward.trace(model.abstract, tokens).jaxpr.jaxpr)
    assert found == {"dot_general": {"bfloat16"}, "exp": {"float32"}, "rsqrt": {"float32"}, "cos": {"float32"}}
