"""Gradients of a batch whose microbatches go through the stages of a pipeline, in one program for all devices.

Every array of a stage has a leading dimension of stages, cut over their devices, and a stage's work is the model's own,
mapped over it. A tick is a forward item of every stage, a backward item, or both; what a stage hands on is moved by one
exchange between neighbours. The backward pass computes a stage again from its input, so that only inputs are kept.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.layers.moe.losses import RouterSums
from pathways_lm.models.model import Params
from pathways_lm.models.transformer import Stream
from pathways_lm.pipeline.deal import Deal
from pathways_lm.pipeline.exchange import add_at, at_stage, masked, of_stage, read, rotate, write
from pathways_lm.pipeline.parts import Parts, with_stacks
from pathways_lm.pipeline.timetable import Segment, Timetable, slots


class TowerCarry(NamedTuple):
    """What one tower's stages hold from tick to tick; [S, ...] but for what has arrived."""

    going: Stream
    """What each stage gets from the one before."""
    returning: Stream
    """Its gradient, from the one behind."""
    inputs: Stream
    """[S, slots, ...]: stage inputs that wait for the way back."""
    grads: Params
    """[S, chunks, k, ...]"""
    relative: Array | None
    """Gradient of the relative positions, added up by each stage."""
    routing: RouterSums | None
    """[S, chunks, k, ...]"""
    arrived: Array
    """[slots, B, L, D]: what left the last stage."""
    turning: Array
    """[slots, B, L, D]: its gradient."""


class Carry(NamedTuple):
    """What is held from tick to tick."""

    towers: tuple[TowerCarry, ...]
    shared: Params
    """Gradients of what all stages share: embeddings, norms at the end, logits."""
    told: Any


class Pipeline:
    """A step's way through the stages."""

    def __init__(self, parts: Parts, table: Timetable):
        self.parts, self.table = parts, table
        self.rules, self.names = parts.rules, parts.names

    def run(self) -> tuple[Params, Any, RouterSums | None]:
        """Gradients, what the score told of all microbatches, and what all routers told, by layer."""
        carry = self._start()
        # From JAX 0.12 on, a constant that meets what is mapped over stages must lie on the mesh, too.
        with jax.sharding.use_abstract_mesh(self.rules.mesh.abstract_mesh):
            for segment in self.table.segments():
                tick = partial(self._tick, segment)
                carry = jax.lax.scan(tick, carry, jnp.arange(segment.first, segment.end))[0]
        return self._finish(carry)

    # --- ticks

    def _tick(self, segment: Segment, carry: Carry, tick: Array) -> tuple[Carry, None]:
        towers, shared, told = list(carry.towers), carry.shared, carry.told
        for tower in segment.forward:
            self._forward(tower, tick, towers)
        if len(self.names) - 1 in segment.forward:
            shared, told = self._turn(tick, towers, shared, told)
        for tower in segment.backward[::-1]:
            shared = self._backward(tower, tick, towers, shared)
        done = Carry(tuple(towers), shared, told)
        return jax.tree.map(lambda new, old: reshard(new, jax.typeof(old).sharding), done, carry), None

    def _forward(self, tower: int, tick: Array, carry: list[TowerCarry]) -> None:
        name, table, own = self.names[tower], self.table, carry[tower]
        since = tick - table.forward(tower)
        index_S = since - self._stages()
        m_S, c_S, live_S = self._items(index_S, back=False)
        m, _, _ = self._items(since, back=False)
        before = None if tower == 0 else _at(carry[tower - 1].arrived, m)
        entered = self.parts.enter(name, self.parts.shared, m, before)
        stream = at_stage((self._stages() == 0) & (c_S == 0), entered, own.going)
        places = own.inputs.x_BLD.shape[1]
        out = self.parts.forward(name, stream, m_S, c_S)
        m, ready = self._arriving(tower, tick)
        left = of_stage(out.x_BLD, self._stages() == table.stages - 1)
        carry[tower] = own._replace(
            going=rotate(out, self.rules, 1),
            inputs=write(own.inputs, stream, index_S % places, live_S, self.rules),
            arrived=_put(own.arrived, left, m, ready),
        )

    def _turn(self, tick: Array, carry: list[TowerCarry], shared: Params, told: Any) -> tuple[Params, Any]:
        """The loss of the microbatch that arrives at this tick, and its gradient."""
        tower = len(self.names) - 1
        m, ready = self._arriving(tower, tick)

        def loss(held: Params, x_BLD: Array) -> tuple[Array, Any]:
            value, told = self.parts.leave(held, x_BLD, m)
            return jnp.where(ready, value, 0), told

        x_BLD = _at(carry[tower].arrived, m)
        (_, fresh), (grads, turned) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(self.parts.shared, x_BLD)
        carry[tower] = carry[tower]._replace(turning=_put(carry[tower].turning, turned, m, ready))
        fresh = jax.tree.map(lambda value: jnp.where(ready, value, 0), fresh)
        return _add(shared, grads), jax.tree.map(jnp.add, told, fresh)

    def _backward(self, tower: int, tick: Array, carry: list[TowerCarry], shared: Params) -> Params:
        name, table, own = self.names[tower], self.table, carry[tower]
        S, since = table.stages, tick - table.backward(tower)
        m_S, c_S, live_S = self._items(since - (S - 1 - self._stages()), back=True)
        places = own.inputs.x_BLD.shape[1]
        stream = read(own.inputs, table.index(m_S, c_S) % places, self.rules)
        m, _, _ = self._items(since, back=True)
        last_S = (self._stages() == S - 1) & (c_S == table.chunks - 1)
        turned = masked(own.returning, live_S & ~last_S)
        turned = turned._replace(x_BLD=at_stage(last_S & live_S, _at(own.turning, m), turned.x_BLD))
        grads, returned, relative, routing = self.parts.backward(name, stream, turned, m_S, c_S, live_S)
        carry[tower] = own._replace(
            returning=rotate(returned, self.rules, -1),
            grads=jax.tree.map(lambda total, part: add_at(total, _settled(part, total), c_S), own.grads, grads),
            relative=jax.tree.map(jnp.add, own.relative, relative),
            routing=jax.tree.map(lambda total, part: add_at(total, part, c_S), own.routing, routing),
        )
        return self._home(tower, since - (S - 1), returned, carry, shared)

    def _home(self, tower: int, index: Array, returned: Stream, carry: list[TowerCarry], shared: Params) -> Params:
        """The gradient of what entered the first stage, to the embeddings and to the tower before."""
        m, c, live = self._items(index, back=True)
        ready = live & (c == 0)
        entered = of_stage(returned, (self._stages() == 0) & ready)
        before = None if tower == 0 else _at(carry[tower - 1].arrived, m)
        name = self.names[tower]
        _, pull = jax.vjp(lambda held, before: self.parts.enter(name, held, m, before), self.parts.shared, before)
        grads, turned = pull(entered)
        if tower > 0:
            ahead = carry[tower - 1]
            carry[tower - 1] = ahead._replace(turning=_put(ahead.turning, turned, m, ready))
        return _add(shared, grads)

    def _items(self, index: Array, back: bool) -> tuple[Array, Array, Array]:
        """Microbatch, chunk and whether there is one, of an index or of each stage's."""
        last = self.table.items - 1
        item = self.table.returning if back else self.table.item
        m, c = item(jnp.clip(index, 0, last))
        return m, c, (index >= 0) & (index <= last)

    def _arriving(self, tower: int, tick: Array) -> tuple[Array, Array]:
        """The microbatch that leaves a tower's last stage at this tick, and whether one does."""
        m, c, live = self._items(tick - self.table.forward(tower) - (self.table.stages - 1), back=False)
        return m, live & (c == self.table.chunks - 1)

    def _stages(self) -> Array:
        return reshard(jnp.arange(self.rules.stages), self.rules("stage"))

    # --- before and after

    def _start(self) -> Carry:
        parts, zero = self.parts, jnp.zeros((), jnp.int32)
        towers, before = [], None
        for tower, name in enumerate(self.names):
            entered = jax.eval_shape(lambda held, x, name=name: parts.enter(name, held, zero, x), parts.shared, before)
            before = entered.x_BLD
            towers.append(self._start_tower(tower, name, entered))

        def graded(held: Params, x_BLD: Any) -> tuple[Params, Any]:
            return jax.grad(lambda held: parts.leave(held, x_BLD, zero), has_aux=True)(held)

        grads, told = jax.eval_shape(graded, parts.shared, before)
        return Carry(tuple(towers), jax.tree.map(_fp32_zeros, grads), jax.tree.map(_zeros, told))

    def _start_tower(self, tower: int, name: str, entered: Stream) -> TowerCarry:
        table, parts = self.table, self.parts
        arrive, turn = ([at(tower, m) for m in range(table.microbatches)] for at in (table.arrival, table.turn))
        if tower + 1 < len(self.names):
            # What left an encoder is needed until the decoder's gradient comes home.
            home = [table.home(tower + 1, m) for m in range(table.microbatches)]
            kept, turned = slots(arrive, home), slots(home, turn)
        else:
            kept, turned = 1, slots(arrive, turn)
        stages, waiting = (table.stages,), (table.stages, table.input_slots(tower))
        relative = parts.relative[name]
        return TowerCarry(
            going=jax.tree.map(lambda leaf: self._zeros(leaf, stages), entered),
            returning=jax.tree.map(lambda leaf: self._zeros(leaf, stages), entered),
            inputs=jax.tree.map(lambda leaf: self._zeros(leaf, waiting), entered),
            grads=parts.each(self._zero_grads, parts.weights[name], name),
            relative=None if relative is None else self._zeros(jax.typeof(relative), stages),
            routing=self._zero_routing(name) if name in parts.tokens else None,
            arrived=self._zeros(entered.x_BLD, (kept,), staged=False),
            turning=self._zeros(entered.x_BLD, (turned,), staged=False),
        )

    def _zeros(self, leaf: Any, lead: tuple[int, ...], staged: bool = True) -> Array:
        """Zeros like `leaf` with more leading dimensions, the first of which may count stages."""
        first = self.rules("stage").spec[0] if staged else None
        entries = (first, *(None for _ in lead[1:]), *leaf.sharding.spec.partitions)
        placed = NamedSharding(self.rules.mesh, PartitionSpec(*entries))
        return reshard(jnp.zeros((*lead, *leaf.shape), leaf.dtype), placed)

    def _zero_grads(self, weight: Array, variable: nnx.Variable) -> Array:
        rules = self.rules
        held = rules.held(*variable.dims, tokens=variable.tokens).spec
        lead = jax.typeof(weight).sharding.spec.partitions[:3]
        placed = PartitionSpec(*lead, *held.partitions, unreduced=held.reduced)
        if rules.zero == 2:
            placed = PartitionSpec(*lead, *rules(*variable.dims).spec.partitions)
        return reshard(jnp.zeros(weight.shape, jnp.float32), NamedSharding(rules.mesh, placed))

    def _zero_routing(self, name: str) -> RouterSums:
        shape = self.parts.deals[name].layers.shape
        E = self.parts.model.config.moe.num_experts

        def zeros(*tail: int) -> Array:
            names = ("stage", *(None for _ in (*shape[1:], *tail)))
            return reshard(jnp.zeros((*shape, *tail), jnp.float32), self.rules(*names))

        return RouterSums(**{field: zeros(*((E,) if field == "load_E" else ())) for field in RouterSums._fields})

    def _finish(self, carry: Carry) -> tuple[Params, Any, RouterSums | None]:
        parts, shared, stacks, told = self.parts, carry.shared, {}, []
        for name, own in zip(self.names, carry.towers, strict=True):
            deal = parts.deals[name]
            if own.relative is not None:
                _, pull = jax.vjp(lambda held, name=name: parts.relative_of(name, held), parts.shared)
                shared = _add(shared, pull(jnp.sum(own.relative, axis=0))[0])
            stacks[name] = parts.each(deal.back, own.grads, name)
            if own.routing is not None:
                told.append(jax.tree.map(lambda sums, deal=deal: _by_layer(sums, deal), own.routing))
        routing = jax.tree.map(lambda *layers: jnp.concatenate(layers), *told) if told else None
        return with_stacks(shared, stacks, self.names), carry.told, routing


def _settled(part: Array, total: Array) -> Array:
    """A gradient in fp32, cut as the sum that it is added to."""
    sharding = jax.typeof(total).sharding
    spec = sharding.spec
    partitions = (spec.partitions[0], *spec.partitions[2:])
    return reshard(part.astype(jnp.float32), sharding.update(spec=PartitionSpec(*partitions, unreduced=spec.unreduced)))


def _by_layer(sums: Array, deal: Deal) -> Array:
    """[S, chunks, k, ...] to [layers, ...]."""
    whole = reshard(sums, jax.typeof(sums).sharding.update(spec=PartitionSpec(*(None for _ in sums.shape))))
    return jnp.reshape(whole, (deal.layers.size, *sums.shape[3:]))[deal.place_of]


def _at(buffer: Array, m: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(buffer, m % buffer.shape[0], keepdims=False)


def _put(buffer: Array, value: Array, m: Array, ready: Array) -> Array:
    place = m % buffer.shape[0]
    old = jax.lax.dynamic_index_in_dim(buffer, place, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(buffer, jnp.where(ready, value.astype(buffer.dtype), old), place, 0)


def _zeros(leaf: Any) -> Array:
    value = jnp.zeros(leaf.shape, leaf.dtype)
    return value if leaf.sharding is None else reshard(value, leaf.sharding)


def _fp32_zeros(leaf: Any) -> Array:
    return _zeros(jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding))


def _add(total: Params, part: Params) -> Params:
    return jax.tree.map(lambda t, p: t + p.astype(jnp.float32), total, part)
