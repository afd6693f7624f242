"""Gradients of a batch whose microbatches go through the stages of a pipeline, in one program for all devices.

Every array of a stage has a leading dimension of stages, cut over their devices, and a stage's work is the model's own,
mapped over it. A tick is a forward item of every stage, a backward item, or both; what a stage hands on is moved by one
exchange between neighbours. The backward pass computes a stage again from its input, so that only inputs are kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.layers.dropout import site
from pathways_lm.layers.moe.losses import RouterSums
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, Params
from pathways_lm.models.transformer import Stream, Transformer
from pathways_lm.pipeline.deal import Deal
from pathways_lm.pipeline.exchange import add_at, at_stage, of_stage, read, rotate, write
from pathways_lm.pipeline.timetable import Segment, Timetable, slots
from pathways_lm.sharding import Rules

Score = Callable[[Array, Batch], tuple[Array, Any]]
"""Logits and a microbatch -> its loss, and what is told of it: sums over tokens."""
RoutingLoss = Callable[[RouterSums, Array], Array]
"""What routers tell of some layers, and the tokens of each of these layers in the batch -> what is added to the loss."""


class TowerCarry(NamedTuple):
    """What one tower's stages hold from tick to tick; [S, ...] but for what has arrived."""

    going: Stream
    """What each stage gets from the one before."""
    returning: Stream
    inputs: Stream
    """[S, slots, ...]: stage inputs that wait for the way back."""
    grads: Params
    """[S, chunks, k, ...]"""
    bias: Array | None
    """Gradient of the relative bias, added up by each stage."""
    routing: RouterSums | None
    """[S, chunks, k, ...]"""
    arrived: Array
    """[slots, B, L, D]: what left the last stage."""
    turning: Array
    """[slots, B, L, D]: its gradient."""


class Carry(NamedTuple):
    towers: tuple[TowerCarry, ...]
    shared: Params
    """Gradients of what all stages share: embeddings, norms at the end, logits."""
    told: Any


class Pipeline:
    """One step's way through the stages.

    Args:
      cast: parameters as stored, in the type of the arithmetic.
      microbatches: a batch with a leading dimension of microbatches.
      key: of the step, for dropout and routers; microbatch m's is folded with m.
      tokens: of each tower that has routers, the tokens that one of them routes in the whole batch.
    """

    def __init__(
        self,
        model: Model,
        timetable: Timetable,
        cast: Params,
        microbatches: Batch,
        key: Array | None,
        score: Score,
        routing_loss: RoutingLoss,
        tokens: dict[str, Array],
    ):
        self.model, self.rules, self.table = model, model.rules, timetable
        self.microbatches, self.key = microbatches, key
        self.score, self.routing_loss, self.tokens = score, routing_loss, tokens
        self.shape: Transformer = model.bind(model.abstract)
        self.names = self.shape.towers
        self.deals = {name: Deal(getattr(self.shape, name).blocks.num_layers, self.rules) for name in self.names}
        self.variables = {name: _nested(model.variables[name]["blocks"]["layers"]) for name in self.names}
        stacks = {name: cast[name]["blocks"]["layers"] for name in self.names}
        self.weights = {name: self._each(self.deals[name].out, stacks[name], name) for name in self.names}
        held = _without_stacks(model.held, self.names)
        self.shared = jax.tree.map(reshard, _without_stacks(cast, self.names), held)
        self.biases = {name: self._bias(name) for name in self.names}
        self.keys = {name: self._layer_keys(name) for name in self.names}

    def _each(self, change: Callable[[Array, nnx.Variable], Array], tree: Params, name: str) -> Params:
        return jax.tree.map(change, tree, self.variables[name])

    # --- parts of the model, at one microbatch

    def _module(self, shared: Params) -> Transformer:
        return self.model.bind(_with_stacks(shared, self.weights, self.names))

    def _rows(self, m: Array) -> Batch:
        """A microbatch; or, for m [S], each stage's."""
        if jnp.ndim(m) == 0:
            return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, m, keepdims=False), self.microbatches)
        cut = self.rules("stage", "batch", None)
        return jax.tree.map(lambda leaf: leaf.at[m].get(out_sharding=cut), self.microbatches)

    def _key(self, m: Array) -> Array | None:
        return None if self.key is None else jax.random.fold_in(self.key, m)

    def _enter(self, name: str, shared: Params, m: Array, before: Array | None) -> Stream:
        return self._module(shared).enter(name, self._rows(m), self._key(m), before)

    def _leave(self, shared: Params, x_BLD: Array, m: Array) -> tuple[Array, Any]:
        rows = self._rows(m)
        return self.score(self._module(shared).leave(x_BLD, self._key(m)), rows)

    def _bias(self, name: str, table: Params | None = None) -> Array | None:
        rows = jax.tree.map(lambda leaf: leaf[0], self.microbatches)
        module = self._module(self.shared if table is None else table)
        places = module.places(name, rows)
        return getattr(module, name).relative(places, places)

    def _layer_keys(self, name: str) -> Array | None:
        """Key data of every microbatch's layers in their places, [M, S, chunks, k, every, 2]."""
        if self.key is None:
            return None
        tower, deal = getattr(self.shape, name), self.deals[name]

        def of(m: Array) -> Array:
            return jax.random.key_data(tower.layer_keys(self.shape.tower_key(name, self._key(m))))

        data = jax.vmap(of)(jnp.arange(self.table.microbatches))
        data = data.reshape(data.shape[0], deal.num_layers, -1, *data.shape[2:])
        return data[:, np.maximum(deal.layers, 0)]

    def _stage(
        self, name: str, weights: Params, stream: Stream, rows: Batch, bias: Array | None, keys: Any, missing: Array
    ) -> tuple[Stream, RouterSums | None]:
        """The work of one stage at one item, before it is mapped over the stages."""
        tower = getattr(self.shape, name)
        places = self.shape.places(name, rows)
        memory = self.shape.memory(name, rows, stream)
        if keys is not None:
            keys = jax.random.wrap_key_data(keys.reshape(-1, keys.shape[-1]))
        x_BLD, out = tower.part(nnx.State(weights), stream.x_BLD, places, memory, bias, keys, missing)
        return stream._replace(x_BLD=x_BLD), out.routing

    # --- ticks

    def _items(self, index_S: Array, item: Callable[[Any], Any]) -> tuple[Array, Array, Array]:
        """Microbatch, chunk and whether there is one, of each stage."""
        live_S = (index_S >= 0) & (index_S < self.table.items)
        m_S, c_S = item(jnp.clip(index_S, 0, self.table.items - 1))
        return m_S, c_S, live_S

    def _given(self, name: str, m_S: Array, c_S: Array) -> tuple[Any, ...]:
        """What each stage is given for its item besides the stream."""
        weights = read(self.weights[name], c_S, self.rules)
        missing = reshard(jnp.asarray(self.deals[name].missing), self.rules("stage", None, None))
        keys = self.keys[name]
        if keys is not None:
            cut = NamedSharding(self.rules.mesh, PartitionSpec(self.rules("stage").spec[0], None, None, None))
            keys = keys.at[m_S, self._stages(), c_S].get(out_sharding=cut)
        return weights, self._rows(m_S), keys, read(missing, c_S, self.rules)

    def _stages(self) -> Array:
        return reshard(jnp.arange(self.rules.stages), self.rules("stage"))

    def _forward(self, tower: int, tick: Array, carry: list[TowerCarry]) -> None:
        name, table, own = self.names[tower], self.table, carry[tower]
        index_S = tick - table.forward(tower) - self._stages()
        m_S, c_S, live_S = self._items(index_S, table.item)
        first = tick - table.forward(tower)
        m, _ = table.item(jnp.clip(first, 0, table.items - 1))
        before = None if tower == 0 else _at(carry[tower - 1].arrived, m)
        entered = self._enter(name, self.shared, m, before)
        stream = at_stage((self._stages() == 0) & (c_S == 0), entered, own.going)
        places = own.inputs.x_BLD.shape[1]
        inputs = write(own.inputs, stream, index_S % places, live_S, self.rules)
        weights, rows, keys, missing = self._given(name, m_S, c_S)

        def one(weights: Params, stream: Stream, rows: Batch, keys: Any, missing: Array, bias: Any) -> Stream:
            return self._stage(name, weights, stream, rows, bias, keys, missing)[0]

        out = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, None))(
            weights, stream, rows, keys, missing, self.biases[name]
        )
        last = tick - table.forward(tower) - (table.stages - 1)
        m, c = table.item(jnp.clip(last, 0, table.items - 1))
        ready = (last >= 0) & (last < table.items) & (c == table.chunks - 1)
        left = of_stage(out.x_BLD, self._stages() == table.stages - 1)
        carry[tower] = own._replace(
            going=rotate(out, self.rules, 1), inputs=inputs, arrived=_put(own.arrived, left, m, ready)
        )

    def _turn(self, tick: Array, towers: list[TowerCarry], shared: Params, told: Any) -> tuple[Params, Any]:
        """The loss of the microbatch that arrives at this tick, and its gradient."""
        table, tower = self.table, len(self.names) - 1
        last = tick - table.forward(tower) - (table.stages - 1)
        m, c = table.item(jnp.clip(last, 0, table.items - 1))
        ready = (last >= 0) & (last < table.items) & (c == table.chunks - 1)

        def loss(held: Params, x_BLD: Array) -> tuple[Array, Any]:
            value, told = self._leave(held, x_BLD, m)
            return jnp.where(ready, value, 0), told

        x_BLD = _at(towers[tower].arrived, m)
        (_, fresh), (grads, turned) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(self.shared, x_BLD)
        towers[tower] = towers[tower]._replace(turning=_put(towers[tower].turning, turned, m, ready))
        fresh = jax.tree.map(lambda value: jnp.where(ready, value, 0), fresh)
        return _add(shared, grads), jax.tree.map(jnp.add, told, fresh)

    def _backward(self, tower: int, tick: Array, carry: list[TowerCarry], shared: Params) -> Params:
        name, table, own = self.names[tower], self.table, carry[tower]
        S, start = table.stages, table.backward(tower)
        m_S, c_S, live_S = self._items(tick - start - (S - 1 - self._stages()), table.returning)
        index_S = m_S if table.chunks == 1 else table.index(m_S, c_S)
        stream = read(own.inputs, index_S % own.inputs.x_BLD.shape[1], self.rules)
        m, _ = table.returning(jnp.clip(tick - start, 0, table.items - 1))
        turned = own.returning._replace(
            x_BLD=at_stage((self._stages() == S - 1) & (c_S == table.chunks - 1), _at(own.turning, m), own.returning.x_BLD)
        )
        if turned.memory_BSD is not None:
            at_end = (self._stages() == S - 1) & (c_S == table.chunks - 1)
            turned = turned._replace(memory_BSD=_masked(turned.memory_BSD, ~at_end))
        turned = jax.tree.map(lambda array: _masked(array, live_S), turned)
        weights, rows, keys, missing = self._given(name, m_S, c_S)
        out = self._pull(name, weights, stream, turned, rows, keys, missing, live_S)
        grads, returned, bias, routing = out
        home = tick - start - (S - 1)
        m, c = table.returning(jnp.clip(home, 0, table.items - 1))
        ready = (home >= 0) & (home < table.items) & (c == 0)
        entered = of_stage(returned, (self._stages() == 0) & ready)
        shared = self._enter_back(tower, m, ready, entered, carry, shared)
        carry[tower] = carry[tower]._replace(
            returning=rotate(returned, self.rules, -1),
            grads=jax.tree.map(lambda total, part: add_at(total, self._settled(part, total), c_S), own.grads, grads),
            bias=None if bias is None else own.bias + bias,
            routing=None if routing is None else jax.tree.map(lambda t, p: add_at(t, p, c_S), own.routing, routing),
        )
        return shared

    def _settled(self, part: Array, total: Array) -> Array:
        """A gradient in fp32, cut as the sum that it is added to."""
        spec = jax.typeof(total).sharding.spec
        partitions = (spec.partitions[0], *spec.partitions[2:])
        target = PartitionSpec(*partitions, unreduced=spec.unreduced)
        return reshard(part.astype(jnp.float32), NamedSharding(self.rules.mesh, target))

    def _pull(
        self,
        name: str,
        weights: Params,
        stream: Stream,
        turned: Stream,
        rows: Batch,
        keys: Any,
        missing_Sk: Array,
        live_S: Array,
    ) -> tuple[Params, Stream, Array | None, RouterSums | None]:
        """Every stage again, and the gradients of its weights, input and bias."""
        tokens = self.tokens.get(name)
        held = self._held_specs(name)

        def one(
            weights: Params, stream: Stream, turned: Stream, rows: Batch, keys: Any, missing: Array, live: Any, bias: Any
        ) -> Any:
            # Gradients with respect to weights that lie so are sums still to be added over devices.
            weights = jax.tree.map(reshard, weights, held)

            def work(weights: Params, stream: Stream, bias: Any) -> Any:
                out, routing = self._stage(name, weights, stream, rows, bias, keys, missing)
                if routing is None:
                    return (out, jnp.zeros((), jnp.float32)), None
                there = (~missing & live).astype(jnp.float32)
                routing = jax.tree.map(lambda sums: sums * there.reshape(-1, *(1 for _ in sums.shape[1:])), routing)
                return (out, self.routing_loss(routing, tokens)), routing

            (_, added), pull, routing = jax.vjp(work, weights, stream, bias, has_aux=True)
            grads, stream, bias = pull((turned, jnp.ones_like(added)))
            return grads, stream, bias, routing

        return jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, 0, None))(
            weights, stream, turned, rows, keys, missing_Sk, live_S, self.biases[name]
        )

    def _held_specs(self, name: str) -> Params:
        """The shardings of one chunk's weights while they are used."""

        def held(_: Array, variable: nnx.Variable) -> NamedSharding:
            spec = self.rules.held(*variable.dims, tokens=variable.tokens).spec
            return NamedSharding(self.rules.mesh, PartitionSpec(None, *spec.partitions, reduced=spec.reduced))

        return self._each(held, self.weights[name], name)

    def _enter_back(
        self, tower: int, m: Array, ready: Array, entered: Stream, carry: list[TowerCarry], shared: Params
    ) -> Params:
        """The gradient of what entered the first stage, to the embeddings and to the tower before."""
        name = self.names[tower]
        before = None if tower == 0 else _at(carry[tower - 1].arrived, m)
        _, pull = jax.vjp(lambda held, before: self._enter(name, held, m, before), self.shared, before)
        grads, turned = pull(entered)
        if tower > 0:
            carry[tower - 1] = carry[tower - 1]._replace(
                turning=_put(carry[tower - 1].turning, turned, m, ready)
            )
        return _add(shared, grads)

    # --- the whole

    def run(self) -> tuple[Params, Any, RouterSums | None]:
        """Gradients as stored, what `score` told of all microbatches, and what all routers told, by layer."""
        carry = self._start()
        for segment in self.table.segments():
            carry = jax.lax.scan(
                lambda carry, tick, segment=segment: (self._tick(segment, tick, carry), None),
                carry,
                jnp.arange(segment.first, segment.end),
            )[0]
        return self._finish(carry)

    def _tick(self, segment: Segment, tick: Array, carry: Carry) -> Carry:
        towers, shared, told = list(carry.towers), carry.shared, carry.told
        for tower in segment.forward:
            self._forward(tower, tick, towers)
        if len(self.names) - 1 in segment.forward:
            shared, told = self._turn(tick, towers, shared, told)
        for tower in segment.backward[::-1]:
            shared = self._backward(tower, tick, towers, shared)
        done = Carry(tuple(towers), shared, told)
        return jax.tree.map(lambda new, old: reshard(new, jax.typeof(old).sharding), done, carry)

    def _start(self) -> Carry:
        table, zero = self.table, jnp.zeros((), jnp.int32)
        towers, before = [], None
        told: Any = None
        for tower, name in enumerate(self.names):
            entered = jax.eval_shape(lambda held, b, name=name: self._enter(name, held, zero, b), self.shared, before)
            before = entered.x_BLD
            towers.append(self._start_tower(tower, name, entered))
        told = jax.eval_shape(lambda held, x: self._leave(held, x, zero)[1], self.shared, before)
        grads = jax.eval_shape(
            lambda held, x: jax.grad(lambda held: self._leave(held, x, zero)[0])(held), self.shared, before
        )
        return Carry(tuple(towers), jax.tree.map(_zeros_fp32, grads), jax.tree.map(_zeros, told))

    def _start_tower(self, tower: int, name: str, entered: Stream) -> TowerCarry:
        table, rules, S = self.table, self.rules, self.rules.stages
        stage = rules("stage").spec[0]

        def staged(leaf: Any) -> Array:
            placed = NamedSharding(rules.mesh, PartitionSpec(stage, *leaf.sharding.spec.partitions))
            return reshard(jnp.zeros((S, *leaf.shape), leaf.dtype), placed)

        def waiting(leaf: Any, count: int) -> Array:
            placed = NamedSharding(rules.mesh, PartitionSpec(stage, None, *leaf.sharding.spec.partitions))
            return reshard(jnp.zeros((S, count, *leaf.shape), leaf.dtype), placed)

        microbatches = range(table.microbatches)
        arrive = [table.arrival(tower, m) for m in microbatches]
        turn = [table.turn(tower, m) for m in microbatches]
        if tower + 1 < len(self.names):
            # What left an encoder is needed until the decoder's gradient comes home.
            kept = slots(arrive, [table.home(tower + 1, m) for m in microbatches])
            turned = slots([table.home(tower + 1, m) for m in microbatches], turn)
        else:
            kept, turned = 1, slots(arrive, turn)
        x = entered.x_BLD
        going = jax.tree.map(staged, entered)
        bias, routing = self.biases[name], self._abstract_routing(name, going)
        return TowerCarry(
            going=going,
            returning=jax.tree.map(staged, entered),
            inputs=jax.tree.map(lambda leaf: waiting(leaf, table.input_slots(tower)), entered),
            grads=self._each(self._zero_grads, self.weights[name], name),
            bias=None if bias is None else staged(jax.typeof(bias)),
            routing=routing,
            arrived=_slots_of(x, kept, rules),
            turning=_slots_of(x, turned, rules),
        )

    def _zero_grads(self, weight: Array, variable: nnx.Variable) -> Array:
        spec = self.rules.held(*variable.dims, tokens=variable.tokens).spec
        lead = jax.typeof(weight).sharding.spec.partitions[:3]
        placed = PartitionSpec(*lead, *spec.partitions, unreduced=spec.reduced)
        if self.rules.zero == 2:
            placed = PartitionSpec(*lead, *self.rules(*variable.dims).spec.partitions)
        return reshard(jnp.zeros(weight.shape, jnp.float32), NamedSharding(self.rules.mesh, placed))

    def _abstract_routing(self, name: str, going: Stream) -> RouterSums | None:
        if name not in self.tokens:
            return None
        S, v, k = self.deals[name].layers.shape
        stage = self.rules("stage").spec[0]
        E = self.model.config.moe.num_experts

        def zeros(*tail: int) -> Array:
            placed = NamedSharding(self.rules.mesh, PartitionSpec(stage, None, None, *(None for _ in tail)))
            return reshard(jnp.zeros((S, v, k, *tail), jnp.float32), placed)

        return RouterSums(**{field: zeros(*((E,) if field == "load_E" else ())) for field in RouterSums._fields})

    def _finish(self, carry: Carry) -> tuple[Params, Any, RouterSums | None]:
        shared = carry.shared
        for name, own in zip(self.names, carry.towers, strict=True):
            if own.bias is not None:
                _, pull = jax.vjp(lambda held, name=name: self._bias(name, held), self.shared)
                shared = _add(shared, pull(jnp.sum(own.bias, axis=0).astype(self.biases[name].dtype))[0])
        stacks = {
            name: self._each(self.deals[name].back, own.grads, name)
            for name, own in zip(self.names, carry.towers, strict=True)
        }
        told = [
            jax.tree.map(lambda sums, deal=self.deals[name]: _by_layer(sums, deal), own.routing)
            for name, own in zip(self.names, carry.towers, strict=True)
            if own.routing is not None
        ]
        routing = jax.tree.map(lambda *layers: jnp.concatenate(layers), *told) if told else None
        return _with_stacks(shared, stacks, self.names), carry.told, routing


def _nested(state: nnx.State) -> Params:
    """A state's variables, by name."""
    nested: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        *parents, last = path
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = variable
    return nested


def _without_stacks(params: Params, names: tuple[str, ...]) -> Params:
    return {
        key: {inner: leaf for inner, leaf in value.items() if inner != "blocks"} if key in names else value
        for key, value in params.items()
    }


def _with_stacks(shared: Params, stacks: dict[str, Params], names: tuple[str, ...]) -> Params:
    return {**shared, **{name: {**shared.get(name, {}), "blocks": {"layers": stacks[name]}} for name in names}}


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


def _masked(array: Array, live_S: Array) -> Array:
    return jnp.where(live_S.reshape(-1, *(1 for _ in array.shape[1:])), array, 0)


def _slots_of(x: Any, count: int, rules: Rules) -> Array:
    placed = NamedSharding(rules.mesh, PartitionSpec(None, *x.sharding.spec.partitions))
    return reshard(jnp.zeros((count, *x.shape), x.dtype), placed)


def _zeros(leaf: Any) -> Array:
    value = jnp.zeros(leaf.shape, leaf.dtype)
    return value if leaf.sharding is None else reshard(value, leaf.sharding)


def _zeros_fp32(leaf: Any) -> Array:
    return _zeros(jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding))


def _add(total: Params, part: Params) -> Params:
    return jax.tree.map(lambda t, p: t + p.astype(jnp.float32), total, part)
