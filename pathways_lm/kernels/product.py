"""The product of activations with a kernel: in their own type, or in eight bits with the scales beside it.

Eight bits are SwitchBack's (arXiv:2304.13013, section 2.2): the product and the gradient of its input multiply
numbers of eight bits, each token and each output of the kernel with a scale of its own, so that the largest has the
largest code. The kernel's gradient sums over all tokens, where the rounding would add up, and is left as it is.

qwix makes codes and scales; where they lie, its own products do not say (docs/decisions/0016-eight-bits.md).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.errors import ConfigError


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


def product(subscripts: str, x: Array, kernel: Array, out: NamedSharding, matmuls: str) -> Array:
    """`jnp.einsum(subscripts, x, kernel, out_sharding=out)`.

    Args:
      subscripts: with all kept dimensions of `x`, in order, and then those of the kernel; none is in all three.
      out: of the result, which may be left as sums still to be added over devices.
      matmuls: `int8` or `fp8`, as said above; empty multiplies in the operands' type.
    """
    if not matmuls:
        if out.mesh.size == 1:
            return _of_matrices(subscripts, x, kernel, out)
        return jnp.einsum(subscripts, x, kernel, out_sharding=out)
    return _in_eight_bits(subscripts, out, _CODES[matmuls], x, kernel)


def _of_matrices(subscripts: str, x: Array, kernel: Array, out: NamedSharding) -> Array:
    """The product on one device, of two matrices: the kernel's dimensions that are summed over stand last in `x` and
    first in the kernel.

    XLA's CPU compiler turns gradients of a product with two dimensions of tokens around, in strides and on one core,
    which took longer than all products of an MLP together.
    """
    read, _, result = _terms(subscripts)
    kept = sum(name in result for name in read)
    rows, sizes = x.shape[:kept], kernel.shape[len(read) - kept :]
    everywhere = NamedSharding(out.mesh, PartitionSpec())
    x = jnp.reshape(reshard(x, everywhere), (math.prod(rows), -1))
    kernel = jnp.reshape(reshard(kernel, everywhere), (-1, math.prod(sizes)))
    return reshard(jnp.reshape(x @ kernel, (*rows, *sizes)), out)


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
    read, weights, result = _terms(subscripts)
    back = f"{result},{weights}->{read}"
    x_gradient = _coded(back, gradient, kernel, codes, codes.gradients, jax.typeof(x).sharding)
    plain = partial(jnp.einsum, subscripts, x, out_sharding=out)
    return x_gradient, jax.vjp(plain, kernel)[1](gradient)[0]


_in_eight_bits.defvjp(_forward, _backward)


def _coded(subscripts: str, x: Array, kernel: Array, codes: _Codes, of_x: jnp.dtype, out: NamedSharding) -> Array:
    """The product in codes, times the scales, in the type of `x`."""
    read, weights, result = _terms(subscripts)
    x_codes, x_scale = _quantize(x, read, result, of_x, codes.calibration)
    kernel_codes, kernel_scale = _quantize(kernel, weights, result, codes.values, codes.calibration)
    # Cut dimensions that are summed over leave sums to be added over devices: scaled and in the type of x before
    # that, which takes half the exchange.
    pending = _axes(x_codes, read, result) | _axes(kernel_codes, weights, result)
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


def _terms(subscripts: str) -> tuple[str, str, str]:
    read, weights, result = subscripts.replace("->", ",").split(",")
    return read, weights, result


def _axes(values: Array, dims: str, result: str) -> set[str]:
    """Mesh axes that cut the dimensions that are not in the result."""
    entries = zip(dims, jax.typeof(values).sharding.spec.partitions, strict=True)
    cut = [entry for name, entry in entries if entry and name not in result]
    return {axis for entry in cut for axis in ((entry,) if isinstance(entry, str) else entry)}
