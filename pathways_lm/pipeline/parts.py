"""One step's model in the parts that a pipeline runs at different times."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.kernels.choice import choose
from pathways_lm.kernels.cross_entropy import Projection
from pathways_lm.layers.moe.losses import RouterSums
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model, Params
from pathways_lm.models.transformer import Stream, Transformer
from pathways_lm.pipeline.deal import Deal
from pathways_lm.pipeline.exchange import read

Score = Callable[[Projection, Batch], tuple[Array, Any]]
"""The way to logits and a microbatch -> its loss, and what is told of it: sums over tokens."""
RoutingLoss = Callable[[RouterSums, Array], Array]
"""What routers tell of some layers, and the tokens that each of these routes in the batch -> what the loss gets."""


class Parts:
    """What enters, what a stage does, what leaves, and the way back through each.

    Args:
      cast: parameters as stored, in the type of the arithmetic.
      microbatches: a batch with a leading dimension of microbatches.
      key: of the step, for dropout and routers; microbatch m's is folded with m.
      tokens: of each tower that has routers, the tokens that one of them routes in the whole batch.
    """

    def __init__(
        self,
        model: Model,
        cast: Params,
        microbatches: Batch,
        key: Array | None,
        score: Score,
        routing_loss: RoutingLoss,
        tokens: dict[str, Array],
    ):
        self.model, self.rules = model, model.rules
        self.microbatches, self.key = microbatches, key
        self.score, self.routing_loss, self.tokens = score, routing_loss, tokens
        self.shape: Transformer = model.bind(model.abstract)
        self.names = self.shape.towers
        self.deals = {name: Deal(getattr(self.shape, name).blocks.num_layers, self.rules) for name in self.names}
        self.variables = {name: _nested(model.variables[name]["blocks"]["layers"]) for name in self.names}
        stacks = {name: cast[name]["blocks"]["layers"] for name in self.names}
        self.weights = {name: self.each(self.deals[name].out, stacks[name], name) for name in self.names}
        held = without_stacks(model.held, self.names)
        self.shared = jax.tree.map(reshard, without_stacks(cast, self.names), held)
        self.relative = {name: self.relative_of(name, self.shared) for name in self.names}
        self.keys = {name: self._layer_keys(name) for name in self.names}

    def each(self, change: Callable[[Array, nnx.Variable], Any], tree: Params, name: str) -> Params:
        """Changes every array of a tower's stack, told what the model says of it."""
        return jax.tree.map(change, tree, self.variables[name])

    # --- what all stages share, at one microbatch

    def enter(self, name: str, shared: Params, m: Array, before_BLD: Array | None) -> Stream:
        """What enters the first stage of a tower, from what left the last of the tower before."""
        return self._module(shared).enter(name, self._rows(m), self._key(m), before_BLD)

    def leave(self, shared: Params, x_BLD: Array, m: Array) -> tuple[Array, Any]:
        """The loss from what left the last stage, and what is told of it."""
        return self.score(self._module(shared).leave(x_BLD, self._key(m)), self._rows(m))

    def relative_of(self, name: str, shared: Params) -> Array | None:
        """What a tower's layers share of relative positions: the same for all microbatches."""
        rows = jax.tree.map(lambda leaf: leaf[0], self.microbatches)
        module = self._module(shared)
        places, tower = module.places(name, rows), getattr(module, name)
        asked = tower.asked(rows.tokens.shape[0], places, places, trains=self.key is not None)
        return tower.relative(places, places, choose(tower.config, self.rules, asked).name)

    def _module(self, shared: Params) -> Transformer:
        return self.model.bind(with_stacks(shared, self.weights, self.names))

    def _rows(self, m: Array) -> Batch:
        """A microbatch; or, for m [S], each stage's."""
        if jnp.ndim(m) == 0:
            return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, m, keepdims=False), self.microbatches)
        cut = self.rules("stage", "batch", None)
        return jax.tree.map(lambda leaf: leaf.at[m].get(out_sharding=cut), self.microbatches)

    def _key(self, m: Array) -> Array | None:
        return None if self.key is None else jax.random.fold_in(self.key, m)

    # --- stages

    def forward(self, name: str, stream: Stream, m_S: Array, c_S: Array) -> Stream:
        """Every stage's work at its microbatch and chunk."""

        def one(weights: Params, stream: Stream, rows: Batch, keys: Any, missing: Array, relative: Any) -> Stream:
            return self._stage(name, weights, stream, rows, keys, missing, relative)[0]

        mapped = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, None))
        weights, rows, keys, missing = self._given(name, m_S, c_S)
        return mapped(weights, stream, rows, keys, missing, self.relative[name])

    def backward(
        self, name: str, stream: Stream, turned: Stream, m_S: Array, c_S: Array, live_S: Array
    ) -> tuple[Params, Stream, Array | None, RouterSums | None]:
        """Every stage's work again from its input, and the gradients of its weights, input and relative positions.

        Args:
          turned: the gradient of what left each stage; zeros where it has nothing to do.
          live_S: bool, false there.
        """
        held = self.each(self._held, self.weights[name], name)

        def one(
            weights: Params,
            stream: Stream,
            turned: Stream,
            rows: Batch,
            keys: Any,
            missing: Any,
            live: Any,
            shared: Any,
        ) -> Any:
            # Gradients with respect to weights that lie so are sums still to be added over devices.
            weights = jax.tree.map(reshard, weights, held)

            def work(weights: Params, stream: Stream, shared: Any) -> Any:
                out, routing = self._stage(name, weights, stream, rows, keys, missing, shared)
                if routing is None:
                    return (out, jnp.zeros((), jnp.float32)), None
                there_k = (~missing & live).astype(jnp.float32)
                routing = jax.tree.map(lambda sums: sums * _like(there_k, sums), routing)
                return (out, self.routing_loss(routing, self.tokens[name])), routing

            (_, added), pull, routing = jax.vjp(work, weights, stream, shared, has_aux=True)
            grads, stream, shared = pull((turned, jnp.ones_like(added)))
            return grads, stream, shared, routing

        mapped = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, 0, None))
        weights, rows, keys, missing = self._given(name, m_S, c_S)
        return mapped(weights, stream, turned, rows, keys, missing, live_S, self.relative[name])

    def _stage(
        self, name: str, weights: Params, stream: Stream, rows: Batch, keys: Any, missing: Array, relative: Any
    ) -> tuple[Stream, RouterSums | None]:
        """The work of one stage, before it is mapped over the stages."""
        places = self.shape.places(name, rows)
        memory = self.shape.memory(name, rows, stream)
        if keys is not None:
            keys = jax.random.wrap_key_data(keys.reshape(-1, keys.shape[-1]))
        tower = getattr(self.shape, name)
        x_BLD, out = tower.part(nnx.State(weights), stream.x_BLD, places, memory, relative, keys, missing)
        return stream._replace(x_BLD=x_BLD), out.routing

    def _given(self, name: str, m_S: Array, c_S: Array) -> tuple[Params, Batch, Array | None, Array]:
        """What each stage is given besides the stream: weights, rows, keys and which layers are missing."""
        weights = read(self.weights[name], c_S, self.rules)
        missing = reshard(jnp.asarray(self.deals[name].missing), self.rules("stage", None, None))
        keys = self.keys[name]
        if keys is not None:
            stages = reshard(jnp.arange(self.rules.stages), self.rules("stage"))
            cut = self.rules("stage", None, None, None)
            keys = keys.at[m_S, stages, c_S].get(out_sharding=cut)
        return weights, self._rows(m_S), keys, read(missing, c_S, self.rules)

    def _held(self, _: Array, variable: nnx.Variable) -> NamedSharding:
        """How one chunk's array lies while it is used."""
        spec = self.rules.held(*variable.dims, tokens=variable.tokens).spec
        return NamedSharding(self.rules.mesh, PartitionSpec(None, *spec.partitions, reduced=spec.reduced))

    def _layer_keys(self, name: str) -> Array | None:
        """Key data of every microbatch's layers in their places, [M, S, chunks, k, every, 2]."""
        if self.key is None:
            return None
        tower, deal = getattr(self.shape, name), self.deals[name]

        def of(m: Array) -> Array:
            return jax.random.key_data(tower.layer_keys(self.shape.tower_key(name, self._key(m))))

        data = jax.vmap(of)(jnp.arange(self.microbatches.tokens.shape[0]))
        data = data.reshape(data.shape[0], deal.num_layers, -1, *data.shape[2:])
        return data[:, np.maximum(deal.layers, 0)]


def without_stacks(params: Params, names: tuple[str, ...]) -> Params:
    """What is left of the parameters without the towers' layers."""
    return {
        key: {inner: leaf for inner, leaf in value.items() if inner != "blocks"} if key in names else value
        for key, value in params.items()
    }


def with_stacks(shared: Params, stacks: dict[str, Params], names: tuple[str, ...]) -> Params:
    """The inverse of `without_stacks`."""
    return {**shared, **{name: {**shared.get(name, {}), "blocks": {"layers": stacks[name]}} for name in names}}


def _like(mask: Array, array: Array) -> Array:
    return mask.reshape(-1, *(1 for _ in array.shape[1:]))


def _nested(state: nnx.State) -> Params:
    """A state's variables, by name."""
    nested: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        *parents, last = map(str, path)
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = variable
    return nested
