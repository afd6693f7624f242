"""Products of two arrays and both gradients against numpy, on one device and on meshes, in fp32 and in bf16."""

import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from pathways_lm.config import MeshConfig
from pathways_lm.kernels.contract import contract
from pathways_lm.mesh import make_mesh
from pathways_lm.sharding import make_rules

SIZES = {
    "b": 8,
    "l": 64,
    "t": 32,
    "s": 48,
    "d": 32,
    "f": 64,
    "n": 4,
    "k": 4,
    "g": 2,
    "h": 16,
    "v": 128,
    "e": 6,
    "c": 10,
}
CUT = {"b": "batch", "f": "mlp", "n": "heads", "k": "heads", "v": "vocab"}
SUBSCRIPTS = (
    "bld,df->blf",
    "blf,fd->bld",
    "bld,dnh->blnh",
    "blnh,nhd->bld",
    "bld,vd->blv",
    "bld,dv->blv",
    "btkgh,bskh->bktgs",
    "bktgs,bskh->btkgh",
    "btkgh,bksh->bktgs",
    "bld,fd->blf",
    "bld,nhd->blnh",
    "blnh,dnh->bld",
    "gsec,gsd->gecd",
    "gsec,gecd->gsd",
)
MESHES = [(1, 1), (2, 4), (8, 1)]


def contracted(subscripts: str, data: int, tensor: int, dtype: type, sizes: Mapping[str, int] = SIZES):
    """Operands, the product in fp32, a gradient for it, and those of the operands; how arrays lie on the mesh."""
    rules = make_rules("tensor_parallel", make_mesh(MeshConfig(data=data, tensor=tensor)))
    terms = subscripts.replace("->", ",").split(",")
    random = np.random.default_rng(0)
    cuts = [rules(*(CUT.get(dim) for dim in dims)) for dims in terms]
    arrays = [random.normal(size=[sizes[dim] for dim in dims]).astype(dtype) for dims in terms]
    left, right, dy = (jax.device_put(array, cut) for array, cut in zip(arrays, cuts, strict=True))

    @jax.jit
    def both(left, right, dy):
        y, pull = jax.vjp(lambda left, right: contract(subscripts, left, right, cuts[2], jnp.float32), left, right)
        return y, *pull(dy.astype(jnp.float32))

    y, dleft, dright = both(left, right, dy)
    assert (dleft.dtype, dright.dtype) == (left.dtype, right.dtype)
    assert [each.sharding.spec for each in (dleft, dright, y)] == [cut.spec for cut in cuts]
    return [np.asarray(array, np.float64) for array in (*arrays, y, dleft, dright)]


@pytest.mark.parametrize(("data", "tensor"), MESHES)
@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_equals_numpy(subscripts, data, tensor):
    left, right, dy, y, dleft, dright = contracted(subscripts, data, tensor, np.float32)
    first, second, result = subscripts.replace("->", ",").split(",")
    np.testing.assert_allclose(y, np.einsum(subscripts, left, right), atol=1e-4)
    np.testing.assert_allclose(dleft, np.einsum(f"{result},{second}->{first}", dy, right), atol=1e-4)
    np.testing.assert_allclose(dright, np.einsum(f"{first},{result}->{second}", left, dy), atol=1e-4)


@pytest.mark.parametrize("rows", ["one", "several"])
@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_bf16_is_summed_in_fp32(subscripts, rows):
    """A product is exact to fp32's sums; a gradient is that, rounded once to the operand's eight bits."""
    sizes = SIZES if rows == "several" else {**SIZES, "b": 1, "l": 1, "t": 1, "g": 1}
    left, right, dy, y, dleft, dright = contracted(subscripts, 1, 1, ml_dtypes.bfloat16, sizes)
    first, second, result = subscripts.replace("->", ",").split(",")
    expected = np.einsum(subscripts, left, right)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
    for found, expected in (
        (dleft, np.einsum(f"{result},{second}->{first}", dy, right)),
        (dright, np.einsum(f"{first},{result}->{second}", left, dy)),
    ):
        np.testing.assert_allclose(found, expected, rtol=2.0**-8, atol=1e-4)


@pytest.mark.parametrize(
    ("subscripts", "sizes"),
    [
        ("gsec,gsd->gecd", {"g": 8, "s": 64, "e": 64, "c": 1, "d": 2}),
        ("gsec,gecd->gsd", {"g": 4, "s": 8, "e": 1, "c": 8, "d": 4}),
        ("gsec,gecd->gsd", {"g": 4, "s": 128, "e": 2, "c": 128, "d": 64}),
    ],
)
def test_products_that_xla_could_turn_into_ones_it_has_not(subscripts, sizes):
    """In bf16, between other operations, shapes at which another order of operands ended in an error at run time."""
    rules = make_rules("palm_2d", make_mesh(MeshConfig(data=1)))
    terms = subscripts.replace("->", ",").split(",")
    random = np.random.default_rng(0)
    cuts = [rules(*(None for _ in dims)) for dims in terms]
    arrays = [random.normal(size=[sizes[dim] for dim in dims]).astype(ml_dtypes.bfloat16) for dims in terms[:2]]

    def total(left, right):
        y = contract(subscripts, jnp.tanh(left), jnp.tanh(right), cuts[2])
        return jnp.sum(y.astype(jnp.float32) ** 2), y

    left, right = map(jax.device_put, arrays, cuts[:2])
    (_, y), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(left, right)
    rounded = [np.tanh(each.astype(np.float32)).astype(ml_dtypes.bfloat16).astype(np.float64) for each in arrays]
    expected = np.einsum(subscripts, *rounded)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=2.0**-7 * np.abs(expected).max())
    assert all(np.isfinite(np.asarray(each, np.float32)).all() for each in gradients)


@pytest.mark.parametrize(("platform", "asked"), [("cpu", jnp.float32), ("tpu", jnp.bfloat16), ("gpu", jnp.bfloat16)])
def test_what_a_platform_is_asked_for(platform, asked):
    """Matrix units write bf16 themselves; XLA for CPUs adds in fp32 only where it is asked for fp32."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Explicit,), abstract_device=device)
    placed = NamedSharding(mesh, PartitionSpec(None, None))
    x = jax.ShapeDtypeStruct((16, 16), jnp.bfloat16, sharding=placed)
    traced = jax.make_jaxpr(lambda x: contract("bd,df->bf", x, x, placed))(x)
    assert traced.out_avals[0].dtype == jnp.bfloat16
    assert f"preferred_element_type={asked.dtype.name}" in str(traced)


@pytest.mark.parametrize("subscripts", ["bld,dnh->blnh", "bld,nhd->blnh", "bld,vd->blv"])
def test_one_row_on_a_gpu(monkeypatch, subscripts):
    """By a sum over products, rounded once; gradients as of any other product."""
    monkeypatch.setattr(sys.modules[contract.__module__], "traced_for", lambda x: "gpu")
    left, right, _ = subscripts.replace("->", ",").split(",")
    sizes = {"b": 1, "l": 1, "d": 96, "n": 4, "h": 8, "v": 40}
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=[sizes[dim] for dim in dims]).astype(ml_dtypes.bfloat16) for dims in (left, right))
    out = make_rules("palm_2d", make_mesh(MeshConfig(data=1)))(*(None for _ in subscripts.partition("->")[2]))
    wide = x.astype(np.float64), kernel.astype(np.float64)
    expected = np.einsum(subscripts, *wide)

    def product(x, kernel):
        return contract(subscripts, x, kernel, out, jnp.float32)

    placed = [
        jax.device_put(each, NamedSharding(out.mesh, PartitionSpec(*(None for _ in each.shape))))
        for each in (x, kernel)
    ]
    assert "dot_general" not in jax.jit(product).lower(*placed).as_text()
    np.testing.assert_allclose(jax.jit(product)(*placed), expected, rtol=1e-5, atol=1e-5)
    rounded = jax.jit(lambda x, kernel: contract(subscripts, x, kernel, out))(*placed)
    np.testing.assert_array_equal(np.asarray(rounded), np.asarray(jax.jit(product)(*placed)).astype(ml_dtypes.bfloat16))
    of_x, of_kernel = jax.jit(jax.grad(lambda x, kernel: product(x, kernel).sum(), (0, 1)))(*placed)
    ones = np.ones_like(expected)
    result = subscripts.partition("->")[2]
    np.testing.assert_allclose(
        of_x.astype(float), np.einsum(f"{result},{right}->{left}", ones, wide[1]), rtol=1e-2, atol=1e-2
    )
    np.testing.assert_allclose(
        of_kernel.astype(float), np.einsum(f"{left},{result}->{right}", wide[0], ones), rtol=1e-2
    )
