"""Products of activations with a kernel: in their own type, or in eight bits with the scales beside it.

Eight bits are SwitchBack's (arXiv:2304.13013, section 2.2): the product and the gradient of its input multiply
numbers of eight bits, each token and each output of the kernel with a scale of its own, so that the largest has the
largest code. The kernel's gradient sums over all tokens, which rules out scales of their own: in int8, where small
numbers would be lost beside large ones, it is left as it is. Floats of eight bits keep those, and it multiplies them
with one scale for all of an array, as Micikevicius et al. do (arXiv:2209.05433, section 3).

qwix makes codes and scales; where they lie, its own products do not say (docs/decisions/0016-eight-bits.md).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.errors import ConfigError
from pathways_lm.kernels.contract import contract, cotangent_sharding, cut_axes, terms, traced_for


class _Codes(NamedTuple):
    """The types of codes: of activations and kernels, of gradients, and in which products are added up."""

    values: jnp.dtype
    gradients: jnp.dtype
    sums: jnp.dtype
    calibration: str = "absmax"
    """How qwix takes the scale from the numbers."""
    all_products: bool = True
    """Also that of the kernel's gradient."""


_CODES = {
    # The largest has code 127 or -127. To qwix it has 127.5, which rounding takes to 127 or -128.
    "int8": _Codes(jnp.dtype(jnp.int8), jnp.dtype(jnp.int8), jnp.dtype(jnp.int32), f"absmax,{127.5 / 127}", False),
    # More range, less precision for gradients.
    "fp8": _Codes(jnp.dtype(jnp.float8_e4m3fn), jnp.dtype(jnp.float8_e5m2), jnp.dtype(jnp.float32)),
}


def check_matmuls(matmuls: str) -> None:
    """Raises ConfigError where products in eight bits are asked for and what makes the codes is not installed."""
    if matmuls:
        try:
            import qwix  # noqa: F401
        except ImportError:
            told = f"model.matmuls='{matmuls}' needs qwix: pip install 'pathways-lm[quantize]'"
            raise ConfigError(told) from None


class Turned(NamedTuple):
    """A kernel on one device whose last dimensions are those that are summed over: so CPUs multiply few rows by it at
    the rate of memory."""

    kernel: Array


def turn(kernel: Array, inputs: int) -> Turned:
    """A kernel on one device, of whose dimensions the first `inputs` are summed over."""
    turned = jnp.moveaxis(kernel, range(inputs), range(-inputs, 0))
    return Turned(reshard(turned, jax.typeof(turned).sharding.update(spec=PartitionSpec())))


def product(subscripts: str, x: Array, kernel: Array | Turned, out: NamedSharding, matmuls: str) -> Array:
    """The product of activations with a kernel: `contract`, or in eight bits.

    Args:
      subscripts: with all kept dimensions of `x`, in order, and then those of the kernel; none is in all three. The
        kernel's are those of one that is not turned.
      out: of the result, which may be left as sums still to be added over devices.
      matmuls: `int8` or `fp8`, as said above; empty multiplies in the operands' type.
    """
    if isinstance(kernel, Turned):
        read, weights, result = terms(subscripts)
        turned = "".join(sorted(weights, key=lambda dim: dim not in result))
        return contract(f"{read},{turned}->{result}", x, kernel.kernel, out)
    if not matmuls:
        return contract(subscripts, x, kernel, out)
    return _in_eight_bits(subscripts, out, _CODES[matmuls], x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_eight_bits(subscripts: str, out: NamedSharding, codes: _Codes, x: Array, kernel: Array) -> Array:
    return _coded(subscripts, x, kernel, codes, (codes.values, codes.values), out)


def _forward(
    subscripts: str, out: NamedSharding, codes: _Codes, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _in_eight_bits(subscripts, out, codes, x, kernel), (x, kernel)


def _backward(
    subscripts: str, out: NamedSharding, codes: _Codes, operands: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = operands
    read, weights, result = terms(subscripts)
    back = f"{result},{weights}->{read}"
    x_gradient = _coded(back, gradient, kernel, codes, (codes.gradients, codes.values), jax.typeof(x).sharding)
    summed, placed = f"{read},{result}->{weights}", cotangent_sharding(kernel)
    if not codes.all_products:
        return x_gradient, contract(summed, x, gradient, placed, kernel.dtype)
    types = (codes.values, codes.gradients)
    return x_gradient, _coded(summed, x, gradient, codes, types, placed, one_scale=True).astype(kernel.dtype)


_in_eight_bits.defvjp(_forward, _backward)


def _coded(
    subscripts: str,
    left: Array,
    right: Array,
    codes: _Codes,
    types: tuple[jnp.dtype, jnp.dtype],
    out: NamedSharding,
    one_scale: bool = False,
) -> Array:
    """The product in codes of these types, times the scales, in the type of `left`.

    Args:
      one_scale: for each operand, and not one for each of its rows.
    """
    first, second, result = terms(subscripts)
    of_left, of_right = ("", "") if one_scale else (first, second)
    left_codes, left_scale = _quantize(left, first, of_left, result, types[0], codes.calibration)
    right_codes, right_scale = _quantize(right, second, of_right, result, types[1], codes.calibration)
    # Cut dimensions that are summed over leave sums to be added over devices: scaled and in the type of the operands
    # before that, which takes half the exchange.
    pending = cut_axes(left_codes, first, result) | cut_axes(right_codes, second, result)
    spec = PartitionSpec(*out.spec.partitions, unreduced=pending)
    # GPUs add before they write: written in bf16, there is less to read for the scales. fp16 has not the range.
    narrow = codes.sums == jnp.float32 and left.dtype == jnp.bfloat16 and traced_for(left) == "gpu"
    sums = left.dtype if narrow else codes.sums
    y = jnp.einsum(subscripts, left_codes, right_codes, preferred_element_type=sums, out_sharding=out.update(spec=spec))
    y = y.astype(jnp.float32)
    for scale in (left_scale, right_scale):
        placed = jax.typeof(scale).sharding
        y = y * reshard(scale, placed.update(spec=PartitionSpec(*placed.spec.partitions, reduced=pending)))
    return reshard(y.astype(left.dtype), out)


def _quantize(
    values: Array, dims: str, scaled: str, result: str, dtype: jnp.dtype, calibration: str
) -> tuple[Array, Array]:
    """Codes in the shape of `values`, and scales, fp32, that broadcast against the result: one for each index of those
    of the `scaled` dimensions that are in it."""
    import qwix

    placed = jax.typeof(values).sharding
    # What is `reduced` promises something of gradients, and of codes there are none.
    values = reshard(values, placed.update(spec=PartitionSpec(*placed.spec.partitions)))
    own = [name for name in dims if name in scaled and name in result]
    kept = [place for place, name in enumerate(dims) if name in own]
    coded = qwix.quantize(values.astype(jnp.float32), dtype, channelwise_axes=kept, calibration_method=calibration)
    scale = jnp.squeeze(coded.scale, [place for place, name in enumerate(dims) if name not in own])
    scale = jnp.expand_dims(scale, [place for place, name in enumerate(result) if name not in own])
    return coded.qvalue, scale
