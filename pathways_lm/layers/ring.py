"""Attention among tokens that lie on several devices: keys and values go round (Liu et al., arXiv:2310.01889).

Each device keeps its queries. Keys and values visit one device after the other, and a running softmax (maximum, sum,
weighted values, in fp32) takes them in by tiles: no device ever has the scores of a whole sequence. The backward pass
sends them round once more, their gradients with them, and computes the weights again from the logarithm of their sum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec, reshard

from pathways_lm.kernels.zigzag import numbers
from pathways_lm.layers.mask import Places
from pathways_lm.layers.tiles import Device, Known, Ring, Softmax, Tile, product
from pathways_lm.sharding import Rules

Visit = Callable[[Array | int, Any, Any], tuple[Any, Any]]
"""What a device does at each turn: turn, guests, what it has -> guests, what it has."""


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def ring_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, table_RN: Array | None, ring: Ring, rules: Rules, scaled: bool
) -> Array:
    """Softmax attention over keys that lie cut along the sequence, as the queries do.

    Args:
      q_BTNH: cut along heads and length.
      k_BSKH, v_BSKH: cut along length, and along heads where there are several (`kernels.attention.spread`).
      table_RN: added to the scores by relative position, cut along heads.
      ring: who sees whom. A query that sees no key is given zeros.
      scaled: divide by sqrt(H).

    Returns:
      [B, T, N, H], as the queries lie.
    """
    return _forward(q_BTNH, k_BSKH, v_BSKH, table_RN, ring, rules, scaled)[0]


class _Kept(NamedTuple):
    """What the backward pass reads: nothing larger than the queries."""

    q_BTNH: Array
    k_BSKH: Array
    v_BSKH: Array
    table_RN: Array | None
    known: Known
    y_BTNH: Array
    log_total_BKTG: Array


def _forward(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, table_RN: Array | None, ring: Ring, rules: Rules, scaled: bool
) -> tuple[Array, _Kept]:
    def local(q: Array, k: Array, v: Array, table: Array | None, known: Known) -> tuple[Array, Array]:
        device = Device(q, k.shape, table, known, rules, scaled)

        def visit(turn: Array | int, guests: Any, softmaxes: list[Softmax]) -> tuple[Any, list[Softmax]]:
            keys, values = guests

            def take_in(half: int, softmax: Softmax, tile: Tile) -> Softmax:
                return softmax.taking_in(*device.scores(half, tile.of(keys), tile), tile.of(values))

            return guests, [device.tiles(turn, half, partial(take_in, half), softmaxes[half]) for half in (0, 1)]

        _, softmaxes = _round(visit, (k, v), [Softmax.of_nothing(half) for half in device.q], rules)
        y, log_total = zip(*(softmax.result() for softmax in softmaxes), strict=True)
        y_BTKGH = jnp.swapaxes(jnp.concatenate(y, axis=2), 1, 2)
        return jnp.reshape(y_BTKGH, q.shape).astype(q.dtype), jnp.concatenate(log_total, axis=2)

    known = _known(ring, q_BTNH.shape[1], k_BSKH.shape[1], rules)
    cuts = _Kept(*_cuts(known, k_BSKH.shape[2], table_RN, rules))
    mapped = jax.shard_map(
        local, mesh=rules.mesh, in_specs=cuts[:5], out_specs=(cuts.y_BTNH, cuts.log_total_BKTG), check_vma=False
    )
    y_BTNH, log_total_BKTG = mapped(q_BTNH, k_BSKH, v_BSKH, table_RN, known)
    return y_BTNH, _Kept(q_BTNH, k_BSKH, v_BSKH, table_RN, known, y_BTNH, log_total_BKTG)


def _backward(
    rules: Rules, scaled: bool, kept: _Kept, dy_BTNH: Array
) -> tuple[Array, Array, Array, Array | None, None]:
    def local(kept: _Kept, dy_BTNH: Array) -> tuple[Array, Array, Array, Array | None]:
        q, k, v, table = kept[:4]
        device = Device(q, k.shape, table, kept.known, rules, scaled)
        dys = device.halves(dy_BTNH)
        inner = [_inner(dy, y) for dy, y in zip(dys, device.halves(kept.y_BTNH), strict=True)]
        log_totals = jnp.split(kept.log_total_BKTG, 2, axis=2)

        def take_in(half: int, keys: Array, values: Array, state: Any, tile: Tile) -> Any:
            dk, dv, dq, dtable = state
            scores, mask = device.scores(half, tile.of(keys), tile)
            p = jnp.where(mask, jnp.exp(scores - log_totals[half][..., None]), 0)
            ds = p * (product("btkgh,bskh->bktgs", dys[half], tile.of(values)) - inner[half][..., None])
            dtable = None if dtable is None else dtable + device.table_gradient(half, ds, tile)
            p, ds = p.astype(keys.dtype), ds.astype(keys.dtype)
            dv = tile.add(dv, product("bktgs,btkgh->bskh", p, dys[half]))
            dk = tile.add(dk, product("bktgs,btkgh->bskh", ds, device.q[half]))
            return dk, dv, dq + product("bktgs,bskh->btkgh", ds, tile.of(keys)), dtable

        def visit(turn: Array | int, guests: Any, own: Any) -> tuple[Any, Any]:
            (keys, values, dk, dv), (dqs, dtable) = guests, own
            dqs = list(dqs)
            for half in (0, 1):
                work = partial(take_in, half, keys, values)
                dk, dv, dqs[half], dtable = device.tiles(turn, half, work, (dk, dv, dqs[half], dtable))
            return (keys, values, dk, dv), (dqs, dtable)

        own = [_zeros(half) for half in device.q], None if table is None else _zeros(table)
        (_, _, dk, dv), (dqs, dtable) = _round(visit, (k, v, _zeros(k), _zeros(v)), own, rules)
        # Gradients are where the round ended: one more step brings them home.
        dk, dv = _send((dk, dv), rules)
        if dtable is not None:
            dtable = jax.lax.psum(dtable, (*rules.axes("batch"), *rules.axes("length"))).astype(dtable.dtype)
        dq = jnp.reshape(jnp.concatenate(dqs, axis=1) * device.scale, q.shape)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dtable

    cuts = _Kept(*_cuts(kept.known, kept.k_BSKH.shape[2], kept.table_RN, rules))
    mapped = jax.shard_map(local, mesh=rules.mesh, in_specs=(cuts, cuts.y_BTNH), out_specs=cuts[:4], check_vma=False)
    return (*mapped(kept, dy_BTNH), None)


ring_attention.defvjp(_forward, _backward)


def _round(visit: Visit, guests: Any, own: Any, rules: Rules) -> tuple[Any, Any]:
    """Every device is visited by what belongs to each: its own first, then that of the device before it, and so on."""

    def turn(state: tuple[Any, Any], number: Array) -> tuple[tuple[Any, Any], None]:
        guests, own = visit(number, *state)
        return (_send(guests, rules), own), None

    last = rules.parts("length") - 1
    guests, own = jax.lax.scan(turn, (guests, own), jnp.arange(last))[0]
    return visit(last, guests, own)


def _send(guests: Any, rules: Rules) -> Any:
    """To the next device."""
    (axis,), size = rules.axes("length"), rules.parts("length")
    pairs = [(index, (index + 1) % size) for index in range(size)]
    return jax.tree.map(lambda guest: jax.lax.ppermute(guest, axis, pairs), guests)


def _inner(dy_BTKGH: Array, y_BTKGH: Array) -> Array:
    """What the gradient of a weight has in common with all of its query's, [B, K, T, G]."""
    inner_BTKG = jnp.sum(dy_BTKGH.astype(jnp.float32) * y_BTKGH.astype(jnp.float32), axis=-1)
    return jnp.swapaxes(inner_BTKG, 1, 2)


def _zeros(like: Array) -> Array:
    return jnp.zeros_like(like, jnp.float32)


def _known(ring: Ring, T: int, S: int, rules: Rules) -> Known:
    return Known(ring, reshard(numbers(T, rules), rules("length")), reshard(numbers(S, rules), rules(None)))


def _cuts(known: Known, kv_heads: int, table_RN: Array | None, rules: Rules) -> tuple[Any, ...]:
    """Partition specs of `_Kept`."""
    heads = "heads" if kv_heads > 1 else None
    queries = rules("batch", "length", "heads", None).spec
    keys = rules("batch", "length", heads, None).spec

    def places(rows: Places, length: str | None) -> Any:
        return jax.tree.map(lambda row: rules("batch" if row.shape[0] > 1 else None, length).spec, rows)

    ring = known.ring
    around = Ring(places(ring.queries, "length"), places(ring.keys, None), ring.causal, None, ring.max_distance)
    at: Any = Known(around, rules("length").spec, PartitionSpec(None))  # type: ignore[arg-type]
    table = None if table_RN is None else rules("norm", "heads").spec
    return queries, keys, keys, table, at, queries, rules("batch", heads, "length", None).spec
