"""Products of any two arrays in their own type, summed in fp32.

Only what is left of the sums is rounded. The units of TPUs and GPUs do that themselves as they write; asked for fp32
there, a product writes twice the bytes, which are read again to be rounded. XLA for CPUs must be asked for fp32: for
a bf16 result it converts and multiplies in fp32 (decision 18). Arrays in fp32 on one CPU are multiplied by MKL, where
that is loaded (`kernels.mkl`).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.kernels.mkl import library, products


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


class _Matrices(NamedTuple):
    """Operands in the order in which they are multiplied, and the names of their dimensions."""

    left_dims: str
    left: Array
    right_dims: str
    right: Array
    result: str

    @property
    def batch(self) -> list[str]:
        return [dim for dim in self.left_dims if dim in self.right_dims and dim in self.result]

    @property
    def summed(self) -> list[str]:
        return [dim for dim in self.left_dims if dim in self.right_dims and dim not in self.result]

    @property
    def rows(self) -> list[str]:
        return [dim for dim in self.left_dims if dim not in self.right_dims]

    @property
    def columns(self) -> list[str]:
        return [dim for dim in self.right_dims if dim not in self.left_dims]

    @property
    def made(self) -> list[str]:
        """The dimensions of what comes out."""
        return [*self.batch, *self.rows, *self.columns]

    def size(self, dims: list[str]) -> int:
        sizes = dict(zip(self.left_dims + self.right_dims, self.left.shape + self.right.shape, strict=True))
        return math.prod(sizes[dim] for dim in dims)

    def lies(self, has: str, *forms: list[str]) -> bool:
        """Whether an array lies in memory as one of the forms; a dimension of one has no place of its own."""
        at, *to = ([dim for dim in dims if self.size([dim]) > 1] for dims in (has, *forms))
        return at in to

    @property
    def right_by_columns(self) -> bool:
        """Whether what is summed over comes last in the right operand: libraries read that as fast as the other."""
        return self.lies(self.right_dims, [*self.batch, *self.columns, *self.summed])

    @property
    def left_by_columns(self) -> bool:
        """Whether what is summed over comes before the rows in the left operand, which MKL reads as fast."""
        return self.lies(self.left_dims, [*self.batch, *self.summed, *self.rows])

    def turned(self, by_columns: bool) -> tuple[int, int]:
        """How many numbers change places after and before the product.

        After counts first. Where the sum of both did, some sums depended in the last bit on how many threads there are,
        and XLA for CPUs made products of bf16 that it does not have.

        Args:
          by_columns: whether the left operand may lie so, as the right one may.
        """
        left = self.lies(self.left_dims, [*self.batch, *self.rows, *self.summed])
        left = left or (by_columns and self.left_by_columns)
        right = self.right_by_columns or self.lies(self.right_dims, [*self.batch, *self.summed, *self.columns])
        result = self.lies(self.result, self.made)
        moves = ((result, list(self.result)), (left, list(self.left_dims)), (right, list(self.right_dims)))
        after, *before = (0 if lies else self.size(dims) for lies, dims in moves)
        return after, sum(before)


def _summed(subscripts: str, left: Array, right: Array, out: NamedSharding | None, dtype: jnp.dtype) -> Array:
    first, second, result = terms(subscripts)
    orders = _Matrices(first, left, second, right, result), _Matrices(second, right, first, left, result)
    alone = out is None or out.mesh.size == 1
    by_mkl = alone and _on_cpu(left) and library.multiplies(left, right)
    matrices = min(orders, key=partial(_Matrices.turned, by_columns=by_mkl))
    lie = alone and not matrices.turned(by_columns=by_mkl)[1]
    multiply = _by_mkl if by_mkl else _by_rows if lie else _as_they_are
    y = multiply(matrices, out, jnp.dtype(jnp.float32) if _on_cpu(left) else dtype)
    # Rounded first, so that XLA does not turn the product itself around, into one that its library for CPUs has not.
    y = jnp.transpose(y.astype(dtype), [matrices.made.index(dim) for dim in result])
    return y if out is None else reshard(y, out)


def _on_cpu(x: Array) -> bool:
    """Whether XLA must be told to add in fp32, and has some products of bf16 and not others."""
    return traced_for(x) == "cpu"


def traced_for(x: Array) -> str:
    """`cpu`, `tpu` or `gpu`, within a program: of the devices that it is traced for, `cpu` where none are said."""
    device = jax.typeof(x).sharding.mesh.abstract_device
    return "cpu" if device is None else device.platform


def _laid(x: Array, shape: Sequence[int], out: NamedSharding | None) -> Array:
    """Reshaped, whole on the one device there is."""
    whole = None if out is None else out.update(spec=PartitionSpec(*(None for _ in shape)))
    return jnp.reshape(x, tuple(shape), out_sharding=whole)


def _by_rows(matrices: _Matrices, out: NamedSharding | None, dtype: jnp.dtype) -> Array:
    """The product on one device, of operands that lie as matrices: as those, so that XLA turns none around."""
    batch = [matrices.size([dim]) for dim in matrices.batch]
    rows, summed, columns = (matrices.size(dims) for dims in (matrices.rows, matrices.summed, matrices.columns))
    by_columns = matrices.right_by_columns
    if rows == 1 and not batch and traced_for(matrices.left) == "gpu":
        y = _of_one_row(matrices, out, dtype)
        return _laid(y, [matrices.size([dim]) for dim in matrices.made], out)
    left = _laid(matrices.left, (*batch, rows, summed), out)
    right = _laid(matrices.right, (*batch, *((columns, summed) if by_columns else (summed, columns))), out)
    last = len(batch) + 1
    if left.dtype == jnp.bfloat16 and _on_cpu(left):
        # For one row or column XLA has a loop that converts number by number; two it gives to the matrix units.
        left = jnp.repeat(left, 2, axis=last - 1) if rows == 1 else left
        right = jnp.repeat(right, 2, axis=last - 1 if by_columns else last) if columns == 1 else right
    summed_over = (last,), (last if by_columns else last - 1,)
    lead = tuple(range(len(batch)))
    y = jax.lax.dot_general(left, right, (summed_over, (lead, lead)), preferred_element_type=dtype)
    y = y[..., :rows, :columns]
    return _laid(y, [matrices.size([dim]) for dim in matrices.made], out)


def _by_mkl(matrices: _Matrices, out: NamedSharding | None, dtype: jnp.dtype) -> Array:
    """The product on one CPU, of operands that lie as matrices, turned or not, or are brought to."""
    batch, rows, summed, columns = matrices.batch, matrices.rows, matrices.summed, matrices.columns
    left_turned, right_turned = matrices.left_by_columns, matrices.right_by_columns

    def matrix(values: Array, has: str, *sides: list[str]) -> Array:
        wanted = [*batch, *sides[0], *sides[1]]
        values = jnp.transpose(values, [has.index(dim) for dim in wanted])
        return _laid(values, [*(matrices.size([dim]) for dim in batch), *map(matrices.size, sides)], out)

    left = matrix(matrices.left, matrices.left_dims, *((summed, rows) if left_turned else (rows, summed)))
    right = matrix(matrices.right, matrices.right_dims, *((columns, summed) if right_turned else (summed, columns)))
    y = products.product(left, right, left_turned, right_turned).astype(dtype)
    return _laid(y, [matrices.size([dim]) for dim in matrices.made], out)


def _of_one_row(matrices: _Matrices, out: NamedSharding | None, dtype: jnp.dtype) -> Array:
    """The product of one row on a GPU, [columns]. Nothing but reading takes time there, which XLA's own reductions do
    at the rate of memory; of a product in fp32 it would first write both operands in fp32."""
    summed, columns = matrices.size(matrices.summed), matrices.size(matrices.columns)
    row = _laid(matrices.left, (summed,), out).astype(jnp.float32)
    if matrices.right_by_columns:
        right = _laid(matrices.right, (columns, summed), out)
        return jnp.sum(right.astype(jnp.float32) * row, axis=1).astype(dtype)
    right = _laid(matrices.right, (summed, columns), out)
    return jnp.sum(right.astype(jnp.float32) * row[:, None], axis=0).astype(dtype)


def _as_they_are(matrices: _Matrices, out: NamedSharding | None, dtype: jnp.dtype) -> Array:
    """The product of operands with all their dimensions, each cut over the mesh in its own way."""
    placed = None
    if out is not None:
        entries = dict(zip(matrices.result, out.spec.partitions, strict=True))
        # Cut dimensions that are summed over leave sums to be added over devices: rounded before that, which takes half
        # the exchange.
        operands = (matrices.left, matrices.left_dims), (matrices.right, matrices.right_dims)
        cut = set().union(*(cut_axes(values, dims, matrices.result) for values, dims in operands))
        pending = out.spec.unreduced | (cut if out.mesh.size > 1 else set())
        spec = PartitionSpec(*(entries[dim] for dim in matrices.made), unreduced=pending, reduced=out.spec.reduced)
        placed = out.update(spec=spec)
    left, right = matrices.left_dims, matrices.right_dims
    summed_over, batch = (
        (tuple(map(left.index, dims)), tuple(map(right.index, dims))) for dims in (matrices.summed, matrices.batch)
    )
    return jax.lax.dot_general(
        matrices.left,
        matrices.right,
        (summed_over, batch),
        preferred_element_type=dtype,
        out_sharding=placed,
    )


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
    first, second, result = terms(subscripts)
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


def terms(subscripts: str) -> tuple[str, str, str]:
    """The dimensions of both operands and of the result."""
    read, weights, result = subscripts.replace("->", ",").split(",")
    return read, weights, result


def cut_axes(values: Array, dims: str, result: str) -> set[str]:
    """Mesh axes that cut the dimensions that are not in the result."""
    entries = zip(dims, jax.typeof(values).sharding.spec.partitions, strict=True)
    cut = [entry for name, entry in entries if entry and name not in result]
    return {axis for entry in cut for axis in ((entry,) if isinstance(entry, str) else entry)}
