"""Layers dealt out to a pipeline's stages, and gathered again."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, reshard

from pathways_lm.sharding import Rules


@dataclass(frozen=True)
class Deal:
    """Which stage has which of a tower's layers.

    Chunk c of stage s has the layers (c stages + s) k to (c stages + s) k + k - 1. Where the layers do not fill all
    places, those chunks get one less that come first and last, where embeddings and logits are.
    """

    num_layers: int
    rules: Rules

    @cached_property
    def layers(self) -> np.ndarray:
        """int [stages, chunks, k]: the layer in each place, -1 for none."""
        S, v = self.rules.stages, self.rules.chunks
        chunks = S * v
        k = -(-self.num_layers // chunks)
        spare = chunks * k - self.num_layers
        counts = np.full(chunks, k)
        # First, last, second, second to last, ...
        order = np.argsort(np.minimum(np.arange(chunks), np.arange(chunks)[::-1]), kind="stable")
        counts[order[: min(spare, chunks)]] -= 1
        ends = np.cumsum(counts)
        places = np.full((chunks, k), -1)
        for chunk, (end, count) in enumerate(zip(ends, counts, strict=True)):
            places[chunk, :count] = np.arange(end - count, end)
        return places.reshape(v, S, k).swapaxes(0, 1)

    @property
    def missing(self) -> np.ndarray:
        """bool [stages, chunks, k]: places without a layer."""
        return self.layers < 0

    @cached_property
    def place_of(self) -> np.ndarray:
        """int [layers]: each layer's place, flattened."""
        flat = self.layers.ravel()
        return np.argsort(np.where(flat < 0, self.num_layers, flat), kind="stable")[: self.num_layers]

    def out(self, stack: Array, variable: nnx.Variable) -> Array:
        """[layers, ...] as stored to [stages, chunks, k, ...] as used in a step, each stage's on its devices."""
        held = self.rules.held(*variable.dims, tokens=variable.tokens).spec.partitions
        placed = self._sharding(held)
        if self.rules.deals(self.num_layers):
            stack = stack[np.maximum(self.layers.ravel(), 0)]
        shape = (*self.layers.shape, *stack.shape[1:])
        if self.rules.deals(self.num_layers):
            return reshard(jnp.reshape(stack, shape), placed)
        inner = jax.typeof(stack).sharding.spec.partitions[1:]
        return reshard(jnp.reshape(stack, shape, out_sharding=self._sharding(inner)), placed)

    def back(self, dealt: Array, variable: nnx.Variable) -> Array:
        """The inverse, for gradients: added over devices and cut as stored."""
        rules = self.rules
        stored = rules(*variable.dims).spec.partitions
        settled = reshard(dealt, self._sharding(stored))
        target = rules.stacked(self.num_layers, *variable.dims)
        shape = (self.layers.size, *settled.shape[3:])
        if not rules.deals(self.num_layers):
            return jnp.reshape(settled, shape, out_sharding=target)
        apart = PartitionSpec(None, None, *target.spec.partitions)
        whole = jnp.reshape(reshard(settled, NamedSharding(rules.mesh, apart)), shape)
        return reshard(whole[self.place_of], target)

    def _sharding(self, inner: tuple) -> NamedSharding:
        stage = self.rules("stage").spec.partitions[0]
        return NamedSharding(self.rules.mesh, PartitionSpec(stage, None, None, *inner))
