"""Products in eight bits against their formulas in numpy, on one device and on meshes, and a model that learns."""

import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from pathways_lm.config import MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.data.objectives import causal
from pathways_lm.errors import ConfigError
from pathways_lm.kernels.product import product
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import initial_state
from pathways_lm.train.step import compile_step, make_step

B, L, D, N, H = 8, 6, 32, 8, 6
MESHES = [(1, 1), (2, 4), (8, 1)]
# Of a number in eight bits: half a step of 127 up to the largest; three bits of mantissa, or two for gradients.
STEP, E4M3, E5M2 = 0.5 / 127, 2.0**-4, 2.0**-3


def rules_on(data: int, tensor: int):
    return make_rules("tensor_parallel", make_mesh(MeshConfig(data=data, tensor=tensor)))


def numbers(*shape, seed: int = 0) -> np.ndarray:
    """Normal numbers, of sizes that differ by a thousand from token to token."""
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * 10 ** random.uniform(-2, 1, (*shape[:2], *[1] * (len(shape) - 2)))).astype("f4")


def project(data: int, tensor: int, matmuls: str, x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray):
    """Heads from the model's dimension, cut along heads: the product and both gradients."""
    rules = rules_on(data, tensor)
    out = rules("batch", "length", "heads", None)
    x = jax.device_put(x, rules("batch", "length", None))
    kernel = jax.device_put(kernel, rules("embed", "heads", "head_dim"))

    @jax.jit
    def multiply(x, kernel):
        used = jax.sharding.reshard(kernel, rules.used(None, "heads", None))
        return product("bld,dnh->blnh", x, used, out, matmuls)

    y, back = jax.vjp(multiply, x, kernel)
    assert jax.typeof(y).sharding.spec == out.spec
    return y, *back(jax.device_put(gradient, out))


def bring_back(data: int, tensor: int, matmuls: str, heads: np.ndarray, kernel: np.ndarray) -> jax.Array:
    """The model's dimension from heads, summed over devices."""
    rules = rules_on(data, tensor)
    heads = jax.device_put(heads, rules("batch", "length", "heads", None))
    kernel = jax.device_put(kernel, rules.used("heads", None, None))
    partial, whole = rules.partial("batch", "length", None, over="heads"), rules("batch", "length", None)

    def multiply(heads, kernel):
        return jax.sharding.reshard(product("blnh,nhd->bld", heads, kernel, partial, matmuls), whole)

    return jax.jit(multiply)(heads, kernel)


def in_int8(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """What is left of numbers after rounding to whole multiples of a 127th of the largest."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / 127
    return np.round(x / scale).astype(np.float64) * scale


def in_fp8(x: np.ndarray, axes: tuple[int, ...], dtype) -> np.ndarray:
    """What is left of numbers after rounding to a float of eight bits in which the largest is the type's largest."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / float(ml_dtypes.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(np.float64) * scale


@pytest.fixture(scope="module")
def operands():
    x, kernel, gradient = numbers(B, L, D), numbers(D, N, H, seed=1), numbers(B, L, N, H, seed=2)
    return x, kernel, gradient


@pytest.mark.parametrize(("data", "tensor"), MESHES)
def test_int8_by_hand(operands, data, tensor):
    """Sums of whole numbers are exact: the same on every mesh, but for the last places of scales."""
    x, kernel, gradient = operands
    y, x_gradient, kernel_gradient = project(data, tensor, "int8", x, kernel, gradient)
    expected = np.einsum("bld,dnh->blnh", in_int8(x, (2,)), in_int8(kernel, (0,)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    expected = np.einsum("blnh,dnh->bld", in_int8(gradient, (2, 3)), in_int8(kernel, (1, 2)))
    np.testing.assert_allclose(x_gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    expected = np.einsum("bld,blnh->dnh", x, gradient)
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("data", "tensor"), MESHES)
def test_fp8_by_hand(operands, data, tensor):
    """Four bits of exponent and three of mantissa for values, five and two for gradients."""
    x, kernel, gradient = operands
    y, x_gradient, kernel_gradient = project(data, tensor, "fp8", x, kernel, gradient)
    e4m3, e5m2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
    expected = np.einsum("bld,dnh->blnh", in_fp8(x, (2,), e4m3), in_fp8(kernel, (0,), e4m3))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    expected = np.einsum("blnh,dnh->bld", in_fp8(gradient, (2, 3), e5m2), in_fp8(kernel, (1, 2), e4m3))
    np.testing.assert_allclose(x_gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    expected = np.einsum("bld,blnh->dnh", in_fp8(x, (0, 1, 2), e4m3), in_fp8(gradient, (0, 1, 2, 3), e5m2))
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("data", "tensor"), MESHES)
@pytest.mark.parametrize(("matmuls", "error"), [("int8", STEP), ("fp8", E4M3)])
def test_sums_over_devices(operands, data, tensor, matmuls, error):
    """Within what rounding of each factor can come to: half a last place of the largest, or of the number itself."""
    _, _, heads = operands
    kernel = numbers(N, H, D, seed=3)
    y = bring_back(data, tensor, matmuls, heads, kernel)
    if matmuls == "int8":
        largest = np.abs(heads).max(axis=(2, 3), keepdims=True), np.abs(kernel).max(axis=(0, 1), keepdims=True)
        rounding = [
            error * np.broadcast_to(each, whole.shape) for each, whole in zip(largest, (heads, kernel), strict=True)
        ]
    else:
        # And below the smallest normal number, 2^-6 of 448, half a step of the subnormal ones.
        rounding = [
            error * np.abs(whole) + np.abs(whole).max(axis=axes, keepdims=True) * 2.0**-10 / 448
            for whole, axes in ((heads, (2, 3)), (kernel, (0, 1)))
        ]
    both = np.einsum("blnh,nhd->bld", np.abs(heads) + rounding[0], rounding[1])
    bound = both + np.einsum("blnh,nhd->bld", rounding[0], np.abs(kernel))
    difference = np.abs(y - np.einsum("blnh,nhd->bld", heads, kernel))
    assert (difference <= bound).all()
    assert difference.max() > 0
    np.testing.assert_allclose(y, bring_back(1, 1, matmuls, heads, kernel), rtol=1e-5, atol=1e-6 * np.abs(y).max())


def test_nothing_finite_comes_of_what_is_not(operands):
    """So that a step with an infinity is skipped in eight bits as well."""
    x, kernel, gradient = (array.copy() for array in operands)
    x[0, 0, 0], gradient[1, 0, 0, 0] = np.inf, np.nan
    for matmuls in ("int8", "fp8"):
        y, x_gradient, _ = project(1, 1, matmuls, x, kernel, gradient)
        assert not np.isfinite(y[0, 0]).any() and np.isfinite(y[0, 1]).all()
        assert not np.isfinite(x_gradient[1, 0]).any() and np.isfinite(x_gradient[1, 1]).all()


@pytest.mark.parametrize(("dtype", "written"), [("bfloat16", "bf16"), ("float16", "f32")])
def test_sums_of_fp8_on_a_gpu(monkeypatch, operands, dtype, written):
    """Written in bf16. In fp16, whose largest number is 65,504, 448 x 448 would be infinite."""
    monkeypatch.setattr(sys.modules[product.__module__], "traced_for", lambda x: "gpu")
    x, kernel, gradient = (array.astype(dtype) for array in operands)
    rules = rules_on(1, 1)
    out = rules("batch", "length", None, None)

    def multiply(x, kernel, gradient):
        y, back = jax.vjp(lambda x, kernel: product("bld,dnh->blnh", x, kernel, out, "fp8"), x, kernel)
        return y, *back(gradient)

    cuts = rules("batch", "length", None), rules(None, None, None), out
    placed = [jax.device_put(each, cut) for each, cut in zip((x, kernel, gradient), cuts, strict=True)]
    told = [line for line in jax.jit(multiply).lower(*placed).as_text().splitlines() if "dot_general" in line]
    assert len(told) == 3
    assert all(line.rstrip().endswith(f"x{written}>") for line in told)
    found = jax.jit(multiply)(*placed)
    wide = [array.astype(np.float64) for array in (x, kernel, gradient)]
    expected = np.einsum("bld,dnh->blnh", *wide[:2])
    assert np.abs(found[0].astype(float) - expected).max() < 0.1 * np.abs(expected).max()
    assert all(np.isfinite(each.astype(float)).all() for each in found)


LEARNING = OptimizerConfig(name="adamw", schedule="cosine", learning_rate=1e-2, hold_steps=5)
END = 6


def losses(tiny, layout: tuple[int, int], matmuls: str, steps: int = 60) -> list[float]:
    """Of a small model that learns rows of numbers that count upwards from anywhere, `END` apart."""
    model = Model(tiny(num_layers=2, matmuls=matmuls), rules_on(*layout))
    train, schedule = TrainConfig(num_steps=steps), make_schedule(LEARNING, steps)
    optimizer = make_optimizer(LEARNING, schedule, model)
    starts = np.random.default_rng(0).integers(10, 200, (steps, 8, 1))
    batches = [causal((start + np.arange(16)).astype(np.int32), END) for start in starts]
    step = compile_step(make_step(model, optimizer, schedule, train), model, optimizer, batches[0])
    state, told = initial_state(model, optimizer, 7), []
    for batch in batches:
        state, metrics = step(state, jax.device_put(batch, model.rules("batch", None)))
        told.append(float(metrics["loss"]))
    return told


def test_eight_bits_train_as_32(tiny):
    """The mean loss of the last ten of 60 steps is within 3% of fp32's, on one device and on eight."""
    exact = losses(tiny, (1, 1), "")
    assert np.mean(exact[-10:]) < 0.5 * exact[0]
    for matmuls, layout in (("int8", (1, 1)), ("int8", (2, 4)), ("fp8", (2, 4))):
        found = losses(tiny, layout, matmuls)
        assert np.mean(found[-10:]) == pytest.approx(np.mean(exact[-10:]), rel=0.03)
        assert found != exact


def test_without_qwix(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"^model.matmuls='int8' needs qwix: pip install 'pathways-lm\[quantize\]'$"):
        Model(tiny(matmuls="int8"), rules_on(1, 1))
