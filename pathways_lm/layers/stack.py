"""Layers of one kind, stacked and scanned: compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, reshard

from pathways_lm.kernels.contract import traced_for
from pathways_lm.sharding import Rules

LAYER_INPUT = "layer_input"
_INPUT_TO_HOST = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
)


class Stack(nnx.Module):
    """`num_layers` modules as one, whose parameters have a leading layer dimension.

    Args:
      build: makes one layer from its random streams.
      remat: what the backward pass finds: with `block` only each layer's input, with `offload` the same in the host's
        memory.
      unroll: layers per iteration of the scan.
    """

    def __init__(
        self,
        build: Callable[[nnx.Rngs], nnx.Module],
        num_layers: int,
        rngs: nnx.Rngs,
        rules: Rules,
        remat: str,
        unroll: int,
    ):
        layout: list[nnx.GraphDef] = []

        def initialise(key: Array) -> nnx.State:
            graphdef, state = nnx.split(build(nnx.Rngs(params=key)), nnx.Param)
            layout.append(graphdef)
            return state

        def place(variable: nnx.Variable) -> nnx.Variable:
            return variable.replace(reshard(variable.get_value(), rules.stacked(num_layers, *variable.dims)))

        stacked = jax.vmap(initialise)(jax.random.split(rngs.params(), num_layers))
        stacked = jax.tree.map(place, stacked, is_leaf=lambda node: isinstance(node, nnx.Variable))
        self.layers = nnx.merge(layout[0], stacked)
        self.num_layers = num_layers
        self.remat = remat
        self.gathers = rules.zero == 3 and rules.mesh.size > 1
        self.unroll = unroll

    def __call__(self, x: Array, *shared: Any, per_layer: Any = None) -> tuple[Array, Any]:
        """Applies each layer as `x, out = layer(x, *shared, own)`.

        Args:
          x: the input of the first layer.
          shared: given to every layer alike.
          per_layer: arrays with a leading layer dimension; each layer is given its own slice.

        Returns:
          The last layer's output, and every layer's `out`, stacked.
        """
        stacked = jax.tree.map(_whole, nnx.split(self.layers, nnx.Param)[1])
        return self.run(stacked, x, *shared, per_layer=per_layer)

    def run(
        self, stacked: Any, x: Array, *shared: Any, per_layer: Any = None, missing: Array | None = None
    ) -> tuple[Array, Any]:
        """The same with given parameters, as many layers as those have.

        Args:
          stacked: their stacked parameters, or a list of each one's, by which they are unrolled. `per_layer` and `out`
            are lists then, too.
          missing: true for layers that are only there to fill up, which leave `x` as it is.
        """
        graphdef, _ = nnx.split(self.layers, nnx.Param)
        if isinstance(stacked, list):
            outs = []
            for state, own in zip(stacked, per_layer, strict=True):
                x, out = nnx.merge(graphdef, nnx.State(state))(x, *shared, own)
                outs.append(out)
            return x, outs

        def body(x: Array, sliced: tuple[Any, Any, Array | None]) -> tuple[Array, Any]:
            state, own, absent = sliced
            x = checkpoint_name(x, LAYER_INPUT)
            y, out = nnx.merge(graphdef, state)(x, *shared, own)
            return y if absent is None else jnp.where(absent, x, y), out

        # In a loop, the backward pass cannot find what the forward pass computed.
        scanned = self.unroll < self.num_layers
        if self.remat == "block":
            body = jax.checkpoint(body, prevent_cse=not scanned)
        elif self.remat == "offload":
            body = jax.checkpoint(body, prevent_cse=not scanned, policy=_INPUT_TO_HOST)
        elif self.gathers:
            body = jax.checkpoint(body, prevent_cse=not scanned, policy=_but_gathered)
        given = (stacked, per_layer, missing)
        if scanned:
            return jax.lax.scan(body, x, given, unroll=self.unroll)
        # All at once, and nothing of what the backward pass reads is put into stacks and taken out again.
        told = []
        for own in _unstacked(given):
            x, out = body(x, own)
            told.append(out)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *told)


def _unstacked(tree: Any) -> list[Any]:
    """Each layer's part of arrays with a leading dimension of layers."""
    leaves, layout = jax.tree.flatten(tree)
    parts = [_taken_apart(leaf) for leaf in leaves]
    return [jax.tree.unflatten(layout, layer) for layer in zip(*parts, strict=True)]


@jax.custom_vjp
def _taken_apart(stack: Array) -> list[Array]:
    return [jnp.squeeze(part, 0) for part in jax.lax.split(stack, [1] * stack.shape[0])]


def _taken_apart_backward(_: None, parts: list[Array]) -> tuple[Array]:
    placed = jax.typeof(parts[0]).sharding
    if traced_for(parts[0]) != "gpu" or placed.mesh.size > 1:
        return (jnp.stack(parts),)
    # Each is copied into its place, beside other work. To put them together at the end, XLA for GPUs has a kernel in
    # which every number asks in turn of which layer it is, at a fifth of the memory's rate.
    whole = placed.update(spec=PartitionSpec(None, *placed.spec.partitions))
    stack = reshard(jnp.zeros((len(parts), *parts[0].shape), parts[0].dtype), whole)
    for number, part in enumerate(parts):
        stack = jax.lax.dynamic_update_index_in_dim(stack, part, number, 0)
    return (stack,)


_taken_apart.defvjp(lambda stack: (_taken_apart(stack), None), _taken_apart_backward)


def _but_gathered(primitive: Any, *_: Any, **options: Any) -> bool:
    """Saves everything for the backward pass but parameters gathered from where they are stored: ZeRO's third stage
    gathers them again (arXiv:1910.02054, section 7.2.2).
    """
    placed = options.get("dst_sharding")
    return not (primitive.name == "reshard" and placed is not None and placed.spec.reduced)


def _whole(leaf: Array) -> Array:
    """A stack that all devices go through, also where each stage has its own part of it (outside of training)."""
    sharding = jax.typeof(leaf).sharding
    first, *rest = sharding.spec.partitions
    if first is None:
        return leaf
    return reshard(leaf, sharding.update(spec=PartitionSpec(None, *rest, reduced=sharding.spec.reduced)))
