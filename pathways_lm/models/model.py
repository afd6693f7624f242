"""A model's layout apart from its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.product import check_matmuls
from pathways_lm.models.transformer import SHAPES
from pathways_lm.sharding import Rules, on_mesh, whole_sequences

Params = dict[str, Any]


def kept_fp32(path: tuple[jax.tree_util.DictKey, ...]) -> bool:
    """Whether a parameter is stored and used in fp32 whatever the others are: norms, routers and biases."""
    return path[-1].key in ("scale", "bias", "router")


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """Parameters in a type, but for those kept in fp32."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if kept_fp32(path) else leaf.astype(dtype), params)


class Model:
    """One of the shapes on a mesh, apart from its parameters, which are plain dictionaries of arrays.

    Args:
      dtype: in which parameters are stored, but for those kept in fp32.
    """

    def __init__(self, config: ModelConfig, rules: Rules, dtype: jnp.dtype = jnp.dtype(jnp.float32)):  # noqa: B008
        check_matmuls(config.matmuls)
        self.config = config
        self.rules = rules
        self.dtype = dtype
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
        self.abstract: Params = jax.tree_util.tree_map_with_path(self._stored, traced)
        is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
        self.held = nnx.to_pure_dict(jax.tree.map(self._holding, self.variables, is_leaf=is_variable))

    def initialise(self, seed: int) -> Params:
        """Parameters drawn from `seed`: the same numbers on every mesh."""
        assert isinstance(self.rules.mesh, Mesh)
        on_mesh = jax.device_put(jnp.uint32(seed), self.rules())
        return jax.jit(lambda seed: cast(nnx.to_pure_dict(self._build(seed)), self.dtype))(on_mesh)

    def _stored(self, path: tuple[jax.tree_util.DictKey, ...], traced: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        placed = on_mesh(traced, self.rules.mesh)
        return placed if kept_fp32(path) else placed.update(dtype=self.dtype)

    def _holding(self, variable: nnx.Variable) -> NamedSharding:
        stack = (None,) * (len(variable.get_value().shape) - len(variable.dims))
        spec = self.rules.held(*variable.dims, tokens=variable.tokens).spec
        return NamedSharding(self.rules.mesh, PartitionSpec(*stack, *spec.partitions, reduced=spec.reduced))

    def with_whole_sequences(self) -> "Model":
        """The same model, and parameters that lie alike, on devices that do not cut sequences."""
        rules = whole_sequences(self.rules)
        return self if rules == self.rules else Model(self.config, rules, self.dtype)

    def hold(self, params: Params) -> Params:
        """Parameters as they lie throughout a step (`Rules.held`). Gradients of these are sums still to be added."""
        return jax.tree.map(reshard, params, self.held)

    def bind(self, params: Params) -> Any:
        """The module with these parameters, to be called inside a jitted function."""
        return nnx.merge(self.graphdef, nnx.State(params))
