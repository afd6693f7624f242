"""Softmax cross-entropy over a vocabulary that may be cut along the mesh, also with the product that makes logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec, reshard

from pathways_lm.kernels.contract import contract, cotangent_sharding
from pathways_lm.mesh import platform
from pathways_lm.sharding import Rules

# Logits that a device holds at a time. On CPUs they stay in a cache. Elsewhere they are of a thousand tokens and a
# vocabulary of 256,000: each part adds to the kernel's gradient in memory, beside which products must be long.
LOGITS_BYTES = {"cpu": 16 * 2**20}
LOGITS_BYTES_ELSEWHERE = 2**30


@partial(jax.tree_util.register_dataclass, data_fields=["x_BLD", "kernel", "bias_V"], meta_fields=["dims", "rules"])
@dataclass(frozen=True)
class Projection:
    """What logits are the product of."""

    x_BLD: Array
    """Whole along D."""
    kernel: Array
    """[V, D] or [D, V], cut along V."""
    bias_V: Array | None
    dims: str
    """`vd` or `dv`."""
    rules: Rules

    def logits(self) -> Array:
        """[B, L, V] in fp32, cut along the vocabulary."""
        out = self.rules("batch", "length", "vocab")
        product_BLV = contract(f"bld,{self.dims}->blv", self.x_BLD, self.kernel, out, jnp.float32)
        return product_BLV if self.bias_V is None else product_BLV + self.bias_V.astype(jnp.float32)

    def gradients(self, gradient_BLV: Array) -> tuple[Array, Array]:
        """Those of the inputs, in their type, and of the kernel, in fp32, for one of the logits."""
        x_BLD, kernel, dims = self.x_BLD, self.kernel, self.dims
        gradient_BLV = gradient_BLV.astype(x_BLD.dtype)
        of_x, of_kernel = cotangent_sharding(x_BLD), cotangent_sharding(kernel)
        x_gradient_BLD = contract(f"blv,{dims}->bld", gradient_BLV, kernel, of_x)
        return x_gradient_BLD, contract(f"bld,blv->{dims}", x_BLD, gradient_BLV, of_kernel, jnp.float32)


class Scored(NamedTuple):
    """What `linear_cross_entropy` says of a batch, fp32."""

    objective: Array
    """The weighted sum, which alone has a gradient."""
    nll_BL: Array
    """Negative log-likelihood of each target, nats."""
    log_z_BL: Array


def cross_entropy(logits_BLV: Array, targets_BL: Array) -> tuple[Array, Array]:
    """Negative log-likelihood and log Z of each token, both [B, L] in fp32 nats.

    The target's logit is found by comparison, not by indexing: an index into a dimension that is
    cut over devices would gather the logits.
    """
    logits_BLV = logits_BLV.astype(jnp.float32)
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_logit_BL = jnp.sum(jnp.where(_hit(logits_BLV, targets_BL), logits_BLV, 0.0), axis=-1)
    return log_z_BL - target_logit_BL, log_z_BL


def _hit(logits_BLV: Array, targets_BL: Array) -> Array:
    columns_BLV = jax.lax.broadcasted_iota(
        targets_BL.dtype, logits_BLV.shape, 2, out_sharding=jax.typeof(logits_BLV).sharding
    )
    return columns_BLV == targets_BL[:, :, None]


Rows = tuple[Array, Array, Array]
"""Inputs of the product [B, L, D], targets and weights [B, L]."""


@jax.named_scope("loss")
def linear_cross_entropy(projection: Projection, targets_BL: Array, weights_BL: Array, z_loss: float) -> Scored:
    """The sum of weight x (nll + z_loss log_z^2), without the logits of a whole batch at any time.

    They are made, scored and turned into gradients some tokens at a time. The gradients are sums, as the loss is, and
    there when it is: no logits are kept for the way back or made twice.

    Args:
      weights_BL: fp32; laid as the targets, which are laid as the logits.

    Source: the z-loss is PaLM's (arXiv:2204.02311, section 5); gradients on the way forward are those of Hsu et al.
    (arXiv:2410.10989, section 3.2).
    """
    B, L = targets_BL.shape
    V = projection.kernel.shape[projection.dims.index("v")]
    return _scored(parts(projection.rules, B, L, V), z_loss, projection, targets_BL, weights_BL)


def parts(rules: Rules, B: int, L: int, V: int) -> int:
    """How many parts each device's tokens come in, so that the logits of one are few. They divide its length."""
    B, L, V = B // rules.parts("batch"), L // rules.parts("length"), V // rules.parts("vocab")
    wanted = -(-B * L * V * 4 // LOGITS_BYTES.get(platform(rules.mesh), LOGITS_BYTES_ELSEWHERE))
    return next((count for count in range(max(1, wanted), L) if L % count == 0), L)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scored(count: int, z_loss: float, projection: Projection, targets_BL: Array, weights_BL: Array) -> Scored:
    def score(_: None, rows: Rows) -> tuple[None, Scored]:
        x_BLD, targets_BL, weights_BL = rows
        return None, _score(replace(projection, x_BLD=x_BLD).logits(), targets_BL, weights_BL, z_loss)

    return _each_part(score, None, (projection.x_BLD, targets_BL, weights_BL), count, projection.rules)[1]


def _score(logits_BLV: Array, targets_BL: Array, weights_BL: Array, z_loss: float) -> Scored:
    nll_BL, log_z_BL = cross_entropy(logits_BLV, targets_BL)
    return Scored(jnp.sum(weights_BL * (nll_BL + z_loss * jnp.square(log_z_BL))), nll_BL, log_z_BL)


def _forward(
    count: int, z_loss: float, projection: Projection, targets_BL: Array, weights_BL: Array
) -> tuple[Scored, Projection]:
    kernel, bias_V = projection.kernel, projection.bias_V

    def score(sums: tuple[Array, Array | None], rows: Rows) -> tuple[tuple[Array, Array | None], tuple[Scored, Array]]:
        x_BLD, targets_BL, weights_BL = rows
        part = replace(projection, x_BLD=x_BLD)
        logits_BLV = part.logits()
        scored = _score(logits_BLV, targets_BL, weights_BL, z_loss)
        log_z_BL1 = scored.log_z_BL[:, :, None]
        share_BLV = jnp.exp(logits_BLV - log_z_BL1) * (1 + 2 * z_loss * log_z_BL1)
        gradient_BLV = (share_BLV - _hit(logits_BLV, targets_BL)) * weights_BL[:, :, None]
        x_gradient_BLD, kernel_gradient = part.gradients(gradient_BLV)
        kernel_sum, bias_sum = sums
        kernel_sum = kernel_sum + kernel_gradient
        bias_sum = None if bias_sum is None else bias_sum + jnp.sum(gradient_BLV, axis=(0, 1))
        return (kernel_sum, bias_sum), (scored, x_gradient_BLD)

    start = jax.tree.map(_zeros, (kernel, bias_V))
    rows = (projection.x_BLD, targets_BL, weights_BL)
    (kernel_sum, bias_sum), (scored, x_gradient_BLD) = _each_part(score, start, rows, count, projection.rules)
    gradients = replace(
        projection,
        x_BLD=x_gradient_BLD,
        kernel=kernel_sum.astype(kernel.dtype),
        bias_V=None if bias_V is None else bias_sum.astype(bias_V.dtype),
    )
    return scored, gradients


def _backward(count: int, z_loss: float, gradients: Projection, cotangent: Scored) -> tuple[Projection, None, None]:
    def times(gradient: Array) -> Array:
        placed = jax.typeof(gradient).sharding
        # What is still to be added over devices is multiplied on each of them.
        factor = reshard(cotangent.objective, placed.update(spec=PartitionSpec(reduced=placed.spec.unreduced)))
        return gradient * factor.astype(gradient.dtype)

    return jax.tree.map(times, gradients), None, None


_scored.defvjp(_forward, _backward)


def _zeros(operand: Array) -> Array:
    """Zeros, fp32, that lie as the operand's gradient."""
    return reshard(jnp.zeros(operand.shape, jnp.float32), cotangent_sharding(operand))


def _each_part(work: Callable[[Any, Rows], Any], state: Any, rows: Rows, count: int, rules: Rules) -> Any:
    """`state, out = work(state, part)` for `count` parts of every device's rows, and the outputs of all rows."""
    if count == 1:
        return work(state, rows)
    devices = rules.parts("length")

    def cut(rows_BLX: Array) -> Array:
        B, L, *rest = rows_BLX.shape
        whole = [None] * len(rest)
        by_device = jnp.reshape(
            rows_BLX,
            (B, devices, count, L // devices // count, *rest),
            out_sharding=rules("batch", "length", None, None, *whole),
        )
        by_part = jnp.moveaxis(by_device, 2, 0)
        return jnp.reshape(by_part, (count, B, L // count, *rest), out_sharding=rules(None, "batch", "length", *whole))

    def join(part_PBLX: Array) -> Array:
        if part_PBLX.ndim == 1:
            return jnp.sum(part_PBLX)
        _, B, L, *rest = part_PBLX.shape
        whole = [None] * len(rest)
        by_device = jnp.reshape(
            part_PBLX,
            (count, B, devices, L // devices, *rest),
            out_sharding=rules(None, "batch", "length", None, *whole),
        )
        in_order = jnp.moveaxis(by_device, 0, 2)
        return jnp.reshape(in_order, (B, L * count, *rest), out_sharding=rules("batch", "length", *whole))

    state, outs = jax.lax.scan(work, state, jax.tree.map(cut, rows))
    return state, jax.tree.map(join, outs)
