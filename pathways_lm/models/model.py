"""A model's layout apart from its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, reshard

from pathways_lm.config import ModelConfig
from pathways_lm.models.transformer import SHAPES
from pathways_lm.sharding import Rules, on_mesh, whole_sequences

Params = dict[str, Any]


class Model:
    """One of the shapes on a mesh, apart from its parameters, which are plain dictionaries of arrays."""

    def __init__(self, config: ModelConfig, rules: Rules):
        self.config = config
        self.rules = rules
        graphdefs = []

        def build(seed: Array) -> nnx.State:
            module = SHAPES[config.shape](config, nnx.Rngs(params=jax.random.key(seed)), rules)
            graphdef, state = nnx.split(module, nnx.Param)
            graphdefs.append(graphdef)
            return state

        self._build = build
        seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=rules())
        self.variables = jax.eval_shape(build, seed)
        self.graphdef = graphdefs[0]
        traced = nnx.to_pure_dict(self.variables)
        self.abstract: Params = jax.tree.map(lambda leaf: on_mesh(leaf, rules.mesh), traced)
        is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
        self.held = nnx.to_pure_dict(jax.tree.map(self._holding, self.variables, is_leaf=is_variable))

    def initialise(self, seed: int) -> Params:
        """Parameters drawn from `seed`: the same numbers on every mesh."""
        assert isinstance(self.rules.mesh, Mesh)
        on_mesh = jax.device_put(jnp.uint32(seed), self.rules())
        return jax.jit(lambda seed: nnx.to_pure_dict(self._build(seed)))(on_mesh)

    def _holding(self, variable: nnx.Variable) -> NamedSharding:
        stack = (None,) * (len(variable.get_value().shape) - len(variable.dims))
        spec = self.rules.held(*variable.dims, tokens=variable.tokens).spec
        return NamedSharding(self.rules.mesh, PartitionSpec(*stack, *spec.partitions, reduced=spec.reduced))

    def with_whole_sequences(self) -> "Model":
        """The same model, and parameters that lie alike, on devices that do not cut sequences."""
        rules = whole_sequences(self.rules)
        return self if rules == self.rules else Model(self.config, rules)

    def hold(self, params: Params) -> Params:
        """Parameters as they lie throughout a step (`Rules.held`). Gradients of these are sums still to be added."""
        return jax.tree.map(reshard, params, self.held)

    def bind(self, params: Params) -> Any:
        """The module with these parameters, to be called inside a jitted function."""
        return nnx.merge(self.graphdef, nnx.State(params))
