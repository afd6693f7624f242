"""Products of activations with a kernel: in their own type, or in eight bits with the scales beside it.

Eight bits are SwitchBack's (arXiv:2304.13013, section 2.2): the product and the gradient of its input multiply
numbers of eight bits, each token and each output of the kernel with a scale of its own, so that the largest has the
largest code. The kernel's gradient sums over all tokens, where the rounding would add up, and is left as it is.

qwix makes codes and scales; where they lie, its own products do not say (docs/decisions/0016-eight-bits.md).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.errors import ConfigError
from pathways_lm.kernels.contract import contract, cotangent_sharding, cut_axes, terms


class _Codes(NamedTuple):
    """The types of codes: of activations and kernels, of gradients, and in which products are added up."""

    values: jnp.dtype
    gradients: jnp.dtype
    sums: jnp.dtype
    calibration: str = "absmax"
    """How qwix takes the scale from the numbers."""


_CODES = {
    # The largest has code 127 or -127. To qwix it has 127.5, which rounding takes to 127 or -128.
    "int8": _Codes(jnp.dtype(jnp.int8), jnp.dtype(jnp.int8), jnp.dtype(jnp.int32), f"absmax,{127.5 / 127}"),
    # As Micikevicius et al. (arXiv:2209.05433, section 3): more range, less precision for gradients.
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
    return _coded(subscripts, x, kernel, codes, codes.values, out)


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
    x_gradient = _coded(back, gradient, kernel, codes, codes.gradients, jax.typeof(x).sharding)
    kernel_gradient = contract(f"{read},{result}->{weights}", x, gradient, cotangent_sharding(kernel), kernel.dtype)
    return x_gradient, kernel_gradient


_in_eight_bits.defvjp(_forward, _backward)


def _coded(subscripts: str, x: Array, kernel: Array, codes: _Codes, of_x: jnp.dtype, out: NamedSharding) -> Array:
    """The product in codes, times the scales, in the type of `x`."""
    read, weights, result = terms(subscripts)
    x_codes, x_scale = _quantize(x, read, result, of_x, codes.calibration)
    kernel_codes, kernel_scale = _quantize(kernel, weights, result, codes.values, codes.calibration)
    # Cut dimensions that are summed over leave sums to be added over devices: scaled and in the type of x before
    # that, which takes half the exchange.
    pending = cut_axes(x_codes, read, result) | cut_axes(kernel_codes, weights, result)
    spec = PartitionSpec(*out.spec.partitions, unreduced=pending)
    y = jnp.einsum(
        subscripts, x_codes, kernel_codes, preferred_element_type=codes.sums, out_sharding=out.update(spec=spec)
    )
    y = y.astype(jnp.float32)
    for scale in (x_scale, kernel_scale):
        placed = jax.typeof(scale).sharding
        y = y * reshard(scale, placed.update(spec=PartitionSpec(*placed.spec.partitions, reduced=pending)))
    return reshard(y.astype(x.dtype), out)


def _quantize(values: Array, dims: str, result: str, dtype: jnp.dtype, calibration: str) -> tuple[Array, Array]:
    """Codes in the shape of `values`, and scales, fp32, that broadcast against the result."""
    import qwix

    placed = jax.typeof(values).sharding
    # What is `reduced` promises something of gradients, and of codes there are none.
    values = reshard(values, placed.update(spec=PartitionSpec(*placed.spec.partitions)))
    kept = [place for place, name in enumerate(dims) if name in result]
    coded = qwix.quantize(values.astype(jnp.float32), dtype, channelwise_axes=kept, calibration_method=calibration)
    scale = jnp.squeeze(coded.scale, [place for place, name in enumerate(dims) if name not in result])
    scale = jnp.expand_dims(scale, [place for place, name in enumerate(result) if name not in dims])
    return coded.qvalue, scale
