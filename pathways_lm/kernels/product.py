"""Products: of any two arrays in their own type, of activations with a kernel in eight bits with the scales beside it.

Sums are in fp32 whatever the operands, and only what is left of them is rounded, as matrix units do. Said so, XLA finds
the units of CPUs, too: asked for a bf16 result it converts and multiplies in fp32 there (decision 18).

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


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def contract(
    subscripts: str, left: Array, right: Array, out: NamedSharding | None, dtype: jnp.dtype | None = None
) -> Array:
    """`jnp.einsum(subscripts, left, right, out_sharding=out)`, summed in fp32, in `dtype` or that of `left`.

    The operands are given to the product in the order in which no or few numbers must be turned around. Gradients are
    in the types of the operands, and so are the numbers that they are products of.

    Args:
      subscripts: of two operands; a dimension that is summed over is in both.
      out: of the result, which may be left as sums still to be added over devices. None where each device works on
        its own part.
    """
    return _summed(subscripts, left, right, out, dtype or left.dtype)


def _summed(subscripts: str, left: Array, right: Array, out: NamedSharding | None, dtype: jnp.dtype) -> Array:
    first, second, result = _terms(subscripts)
    if _turned(second, right, first, left, result) < _turned(first, left, second, right, result):
        first, left, second, right = second, right, first, left
    batch = [dim for dim in first if dim in second and dim in result]
    summed = [dim for dim in first if dim in second and dim not in result]
    kept = [dim for dims in (first, second) for dim in dims if dim in result and dim not in batch]
    made = "".join([*batch, *kept])
    placed = None
    if out is not None:
        entries = dict(zip(result, out.spec.partitions, strict=True))
        # Cut dimensions that are summed over leave sums to be added over devices: rounded before that, which takes half
        # the exchange.
        pending = set() if out.mesh.size == 1 else _axes(left, first, result) | _axes(right, second, result)
        pending |= out.spec.unreduced
        spec = PartitionSpec(*(entries[dim] for dim in made), unreduced=pending, reduced=out.spec.reduced)
        placed = out.update(spec=spec)
    places = [tuple(dims.index(dim) for dim in group) for group in (summed, batch) for dims in (first, second)]
    y = jax.lax.dot_general(
        left,
        right,
        ((places[0], places[1]), (places[2], places[3])),
        preferred_element_type=jnp.float32,
        out_sharding=placed,
    )
    # Rounded first, so that XLA does not turn the product itself around, into one that its library for CPUs has not.
    y = jnp.transpose(y.astype(dtype), [made.index(dim) for dim in result])
    return y if out is None else reshard(y, out)


def _turned(first: str, left: Array, second: str, right: Array, result: str) -> tuple[int, int]:
    """How many numbers change places after and before a product of matrices, given the operands in this order."""
    sizes = dict(zip(first + second, left.shape + right.shape, strict=True))
    batch = [dim for dim in first if dim in second and dim in result]
    summed = [dim for dim in first if dim in second and dim not in result]
    rows, columns = ([dim for dim in dims if dim in result and dim not in batch] for dims in (first, second))

    def moved(has: str, wanted: list[str]) -> int:
        # Dimensions of one have no place of their own.
        at, to = ([dim for dim in dims if sizes[dim] > 1] for dims in (has, wanted))
        return 0 if at == to else math.prod(sizes[dim] for dim in has)

    before = moved(first, [*batch, *rows, *summed]) + moved(second, [*batch, *summed, *columns])
    return moved(result, [*batch, *rows, *columns]), before


def _contract_forward(
    subscripts: str, left: Array, right: Array, out: NamedSharding | None, dtype: jnp.dtype | None
) -> tuple[Array, tuple[Array, Array]]:
    return contract(subscripts, left, right, out, dtype), (left, right)


def _contract_backward(
    subscripts: str,
    out: NamedSharding | None,
    dtype: jnp.dtype | None,
    operands: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    left, right = operands
    first, second, result = _terms(subscripts)
    gradient = gradient.astype(left.dtype)
    cuts = (None, None) if out is None else (cotangent_sharding(left), cotangent_sharding(right))
    left_gradient = _summed(f"{result},{second}->{first}", gradient, right, cuts[0], left.dtype)
    right_gradient = _summed(f"{first},{result}->{second}", left, gradient, cuts[1], right.dtype)
    return left_gradient, right_gradient


contract.defvjp(_contract_forward, _contract_backward)


def cotangent_sharding(operand: Array) -> NamedSharding:
    """How the gradient of a product's operand lies: where that is `reduced`, as sums to be added over devices."""
    placed = jax.typeof(operand).sharding
    spec = placed.spec
    return placed.update(spec=PartitionSpec(*spec.partitions, reduced=spec.unreduced, unreduced=spec.reduced))


def product(subscripts: str, x: Array, kernel: Array, out: NamedSharding, matmuls: str) -> Array:
    """The product of activations with a kernel: `contract`, or in eight bits.

    Args:
      subscripts: with all kept dimensions of `x`, in order, and then those of the kernel; none is in all three.
      out: of the result, which may be left as sums still to be added over devices.
      matmuls: `int8` or `fp8`, as said above; empty multiplies in the operands' type.
    """
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
    read, weights, result = _terms(subscripts)
    back = f"{result},{weights}->{read}"
    x_gradient = _coded(back, gradient, kernel, codes, codes.gradients, jax.typeof(x).sharding)
    return x_gradient, _summed(f"{read},{result}->{weights}", x, gradient, cotangent_sharding(kernel), kernel.dtype)


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
