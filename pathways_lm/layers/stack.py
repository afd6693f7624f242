"""Layers of one kind, stacked and scanned: compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array


class Stack(nnx.Module):
    """`num_layers` modules as one, whose parameters have a leading layer dimension.

    Args:
      build: makes one layer from its random streams.
      recompute: keep only each layer's input for the backward pass.
      unroll: layers per iteration of the scan.
    """

    def __init__(
        self, build: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs, recompute: bool, unroll: int
    ):
        layout: list[nnx.GraphDef] = []

        def initialise(key: Array) -> nnx.State:
            graphdef, state = nnx.split(build(nnx.Rngs(params=key)), nnx.Param)
            layout.append(graphdef)
            return state

        stacked = jax.vmap(initialise)(jax.random.split(rngs.params(), num_layers))
        self.layers = nnx.merge(layout[0], stacked)
        self.recompute = recompute
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
        graphdef, stacked = nnx.split(self.layers, nnx.Param)

        def body(x: Array, sliced: tuple[nnx.State, Any]) -> tuple[Array, Any]:
            state, own = sliced
            return nnx.merge(graphdef, state)(x, *shared, own)

        if self.recompute:
            body = jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(body, x, (stacked, per_layer), unroll=self.unroll)
