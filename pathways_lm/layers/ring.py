"""Attention that never holds the scores of a whole sequence, on one device or among several.

A running softmax (maximum, sum, weighted values, in fp32) takes keys and values in by tiles (Rabe and Staats,
arXiv:2112.05682; FlashAttention, arXiv:2205.14135). Where a sequence lies on several devices, each keeps its queries,
and keys and values go round (Liu et al., arXiv:2310.01889). The backward pass computes the weights again from the
logarithm of their sum; keys and values go round once more, their gradients with them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec, reshard

from pathways_lm.kernels.zigzag import numbers
from pathways_lm.layers.mask import Places
from pathways_lm.layers.tiles import Device, Known, Softmax, Tile, View, product, put, taken
from pathways_lm.sharding import Rules

Visit = Callable[[Array | int, Any, Any], tuple[Any, Any]]
"""What a device does at each turn: turn, guests, what it has -> guests, what it has."""


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def ring_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, table_RN: Array | None, view: View, rules: Rules, scaled: bool
) -> Array:
    """Softmax attention over keys that lie cut along the sequence, as the queries do.

    Args:
      q_BTNH: cut along heads and length.
      k_BSKH, v_BSKH: cut along length, and along heads where there are several (`kernels.attention.spread`).
      table_RN: added to the scores by relative position, cut along heads.
      view: who sees whom. A query that sees no key is given zeros.
      scaled: divide by sqrt(H).

    Returns:
      [B, T, N, H], as the queries lie.
    """
    return _forward(q_BTNH, k_BSKH, v_BSKH, table_RN, view, rules, scaled)[0]


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
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, table_RN: Array | None, view: View, rules: Rules, scaled: bool
) -> tuple[Array, _Kept]:
    def local(q: Array, k: Array, v: Array, table: Array | None, known: Known) -> tuple[Array, Array]:
        device = Device(q, k.shape, table, known, rules, scaled)

        def visit(turn: Array | int, guests: Any, softmaxes: Softmax) -> tuple[Any, Softmax]:
            keys, values = guests

            def take_in(softmaxes: Softmax, block: Array, tile: Tile) -> Softmax:
                seen = device.scores(block, tile.of(keys), tile)
                return put(softmaxes, block, taken(softmaxes, block).taking_in(*seen, tile.of(values)))

            return guests, device.visit(turn, take_in, softmaxes)

        _, softmaxes = _round(visit, (k, v), Softmax.of_nothing(device.q), rules)
        y, log_total = softmaxes.result()
        y_BTKGH = device.joined(jnp.swapaxes(y.astype(q.dtype), 2, 3), 1)
        return jnp.reshape(y_BTKGH, q.shape), device.joined(log_total, 2)

    known = _known(view, q_BTNH.shape[1], k_BSKH.shape[1], rules)
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
        dys = device.by_block(dy_BTNH)
        inner = _inner(dys, device.by_block(kept.y_BTNH))
        log_totals = device.cut(kept.log_total_BKTG, 2)

        def take_in(keys: Array, values: Array, state: Any, block: Array, tile: Tile) -> Any:
            dk, dv, dqs, dtable = state
            dy, q = taken(dys, block), taken(device.q, block)
            scores, mask = device.scores(block, tile.of(keys), tile)
            p = jnp.where(mask, jnp.exp(scores - taken(log_totals, block)[..., None]), 0)
            ds = p * (product("btkgh,bskh->bktgs", dy, tile.of(values)) - taken(inner, block)[..., None])
            dtable = None if dtable is None else dtable + device.table_gradient(block, ds, tile)
            p, ds = p.astype(keys.dtype), ds.astype(keys.dtype)
            dv = tile.add(dv, product("bktgs,btkgh->bskh", p, dy))
            dk = tile.add(dk, product("bktgs,btkgh->bskh", ds, q))
            dq = taken(dqs, block) + product("bktgs,bskh->btkgh", ds, tile.of(keys))
            return dk, dv, put(dqs, block, dq), dtable

        def visit(turn: Array | int, guests: Any, own: Any) -> tuple[Any, Any]:
            keys, values, dk, dv = guests
            dk, dv, *own = device.visit(turn, partial(take_in, keys, values), (dk, dv, *own))
            return (keys, values, dk, dv), tuple(own)

        own = _zeros(device.q), None if table is None else _zeros(table)
        (_, _, dk, dv), (dqs, dtable) = _round(visit, (k, v, _zeros(k), _zeros(v)), own, rules)
        # Gradients are where the round ended: one more step brings them home.
        dk, dv = _send((dk, dv), rules)
        if dtable is not None:
            over = (*rules.axes("batch"), *rules.axes("length"))
            dtable = (jax.lax.psum(dtable, over) if over else dtable).astype(dtable.dtype)
        dq = jnp.reshape(device.joined(dqs, 1) * device.scale, q.shape)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dtable

    cuts = _Kept(*_cuts(kept.known, kept.k_BSKH.shape[2], kept.table_RN, rules))
    mapped = jax.shard_map(local, mesh=rules.mesh, in_specs=(cuts, cuts.y_BTNH), out_specs=cuts[:4], check_vma=False)
    return (*mapped(kept, dy_BTNH), None)


ring_attention.defvjp(_forward, _backward)


def _round(visit: Visit, guests: Any, own: Any, rules: Rules) -> tuple[Any, Any]:
    """Every device is visited by what belongs to each: its own first, then that of the device before it, and so on."""

    def turn(state: tuple[Any, Any], number: Array | int) -> tuple[tuple[Any, Any], None]:
        guests, own = visit(number, *state)
        return (_send(guests, rules), own), None

    last = rules.parts("length") - 1
    if not last:
        return visit(0, guests, own)
    (guests, own), _ = turn((guests, own), 0)
    if last > 1:
        guests, own = jax.lax.scan(turn, (guests, own), jnp.arange(1, last))[0]
    return visit(last, guests, own)


def _send(guests: Any, rules: Rules) -> Any:
    """To the next device."""
    size = rules.parts("length")
    if size == 1:
        return guests
    (axis,) = rules.axes("length")
    pairs = [(index, (index + 1) % size) for index in range(size)]
    return jax.tree.map(lambda guest: jax.lax.ppermute(guest, axis, pairs), guests)


def _inner(dy_BTKGH: Array, y_BTKGH: Array) -> Array:
    """What the gradient of a weight has in common with all of its query's, [blocks, B, K, T, G]."""
    inner_BTKG = jnp.sum(dy_BTKGH.astype(jnp.float32) * y_BTKGH.astype(jnp.float32), axis=-1)
    return jnp.swapaxes(inner_BTKG, 2, 3)


def _zeros(like: Array) -> Array:
    return jnp.zeros_like(like, jnp.float32)


def _known(view: View, T: int, S: int, rules: Rules) -> Known:
    return Known(view, reshard(numbers(T, rules), rules("length")), reshard(numbers(S, rules), rules(None)))


def _cuts(known: Known, kv_heads: int, table_RN: Array | None, rules: Rules) -> tuple[Any, ...]:
    """Partition specs of `_Kept`."""
    heads = "heads" if kv_heads > 1 else None
    queries = rules("batch", "length", "heads", None).spec
    keys = rules("batch", "length", heads, None).spec

    def places(rows: Places, length: str | None) -> Any:
        return jax.tree.map(lambda row: rules("batch" if row.shape[0] > 1 else None, length).spec, rows)

    view = known.view
    around = replace(view, queries=places(view.queries, "length"), keys=places(view.keys, None))
    at: Any = Known(around, rules("length").spec, PartitionSpec(None))  # type: ignore[arg-type]
    table = None if table_RN is None else rules("norm", "heads").spec
    return queries, keys, keys, table, at, queries, rules("batch", heads, "length", None).spec
