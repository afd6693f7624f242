"""A model's way through tokens that follow others: prompts in pieces, and single steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pathways_lm.decode.cache import Cache, Caches, put, write
from pathways_lm.kernels.product import turn
from pathways_lm.layers.attention import join
from pathways_lm.layers.mask import Places
from pathways_lm.mesh import platform
from pathways_lm.models.model import Model, Params, kept_fp32
from pathways_lm.models.tower import Layers
from pathways_lm.sharding import shard_bytes

# Of a GPU's memory, what stack and copy of the decoder's layers may take. The rest is for tables and caches.
ROOM = 0.75


class Weights(NamedTuple):
    """Parameters as steps use them."""

    params: Params
    """All, or all but the decoder's stack."""
    layers: list[Params] | None
    """Of each of the decoder's layers, or each repeat of a pattern. On one device kernels are `Turned`."""


def one_by_one(model: Model, memory: float) -> bool:
    """Whether the decoder's layers are best gone through one by one, for `Forward`.

    XLA for CPUs and GPUs copies each layer out of the stack at every step, before it multiplies with it; TPUs read it
    where it lies. It takes a copy of the layers beside the stack, for which a GPU must have room.

    Args:
      memory: bytes of a device.
    """
    if model.rules.parts("stage") > 1:
        return False
    kind = platform(model.rules.mesh)
    return kind == "cpu" or (kind == "gpu" and 2 * stacked_bytes(model) <= ROOM * memory)


def stacked_bytes(model: Model) -> float:
    """What a device has of the decoder's stacked layers."""
    return shard_bytes(model.abstract["decoder"]["blocks"])


class Forward:
    """`model`, as tokens come a few at a time.

    Args:
      dtype: in which keys and values are kept; int8 keeps codes.
      listed: go through the decoder's layers one by one, each with arrays of its own. Compile time grows with depth;
        but nothing is sliced out of a stack at each step, which on CPUs costs more than the arithmetic.
    """

    def __init__(self, model: Model, dtype: jnp.dtype, listed: bool):
        self.model, self.listed = model, listed
        self.caches = Caches(model.config, model.rules, dtype, listed)
        self._turns = model.rules.mesh.size == 1 and not model.config.matmuls
        self._split = jax.jit(self._layers)

    def weights(self, params: Params) -> Weights:
        """Parameters, taken apart where layers are listed."""
        if not self.listed:
            return Weights(params, None)
        tower = params["decoder"]
        others = {name: value for name, value in tower.items() if name != "blocks"}
        return Weights({**params, "decoder": others}, self._split(tower["blocks"]["layers"]))

    def _layers(self, stack: Params) -> list[Params]:
        """The layers of a stack, one by one."""
        variables = dict(nnx.to_flat_state(self.model.variables["decoder"]["blocks"]["layers"]))

        def turned(path: Any, kernel: Array) -> Any:
            inputs = 0 if kept_fp32(path) else _inputs(variables[tuple(key.key for key in path)].dims)
            return turn(kernel, inputs) if inputs and self._turns else kernel

        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(jax.tree.leaves(stack)[0].shape[0])]
        layers = [jax.tree_util.tree_map_with_path(turned, layer) for layer in layers]
        return [_joined(layer) for layer in layers] if self._turns else layers

    def begin(self, weights: Weights, tokens_BL: Array, positions_BL: Array, nothing: Cache, both_ways: bool) -> Cache:
        """The cache of a prompt that is read at once: its slots are the prompt's columns. `nothing` has no slots."""
        layers = Layers(nothing.layers, None, weights.layers)
        told: Any
        _, told = self._bind(weights).extend(tokens_BL, positions_BL, positions_BL, layers, both_ways=both_ways)
        kept = self._kept(told, "fresh")
        return nothing._replace(layers=kept, positions_BS=positions_BL, used=nothing.used + positions_BL.shape[1])

    def extend(
        self, weights: Weights, tokens_BL: Array, positions_BL: Array, cache: Cache, both_ways: bool = False
    ) -> tuple[Array, Cache]:
        """What logits are made of, [B, L, D], and the cache with the new tokens in it."""
        shape = self._bind(weights)
        memory = None if cache.read_BS is None else (None, Places(cache.read_BS))
        layers = Layers(cache.layers, cache.remembered, weights.layers)
        if self.listed and tokens_BL.shape[1] == 1:
            # Stored first: a cache that was read and then changed XLA would copy to be safe, layer for layer.
            def store(cached: Any, fresh: Any) -> Any:
                kept = jax.tree.map(self.caches.kept, fresh)
                return jax.tree.map(lambda old, new: put(cache, old, new, 2), cached, kept)

            at_BS = put(cache, cache.positions_BS, positions_BL, 1)
            x_BLD, told = shape.extend(tokens_BL, positions_BL, at_BS, layers._replace(store=store), memory, both_ways)
            stored = [out.fresh for out in told]
            return x_BLD, cache._replace(layers=stored, positions_BS=at_BS, used=cache.used + 1)
        at_BS = jnp.concatenate([cache.positions_BS, positions_BL], axis=1)
        x_BLD, told = shape.extend(tokens_BL, positions_BL, at_BS, layers, memory, both_ways)
        return x_BLD, write(cache, self._kept(told, "fresh"), positions_BL)

    def read(self, weights: Weights, tokens_BS: Array, positions_BS: Array, cache: Cache) -> Cache:
        """The cache with keys and values of what an encoder reads. Position -1 is padding."""
        shape = self._bind(weights)
        memory_BSD, places = shape.read(tokens_BS, (positions_BS >= 0).astype(jnp.int32))
        # The decoder makes them when it looks at the encoder's output; what it looks from does not matter.
        one = jnp.zeros_like(positions_BS[:, :1])
        layers = Layers(cache.layers, None, weights.layers)
        told: Any
        _, told = shape.extend(
            one, one, jnp.concatenate([cache.positions_BS, one], axis=1), layers, (memory_BSD, places)
        )
        return cache._replace(remembered=self._kept(told, "remembered"), read_BS=places.positions_BL)

    def logits(self, weights: Weights, x_BLD: Array) -> Array:
        """[B, L, V], cut along the vocabulary."""
        return self._bind(weights).project(x_BLD).logits()

    def _kept(self, told: Any, name: str) -> Any:
        """Keys and values that the layers tell, as caches keep them."""
        pairs = [getattr(out, name) for out in told] if self.listed else getattr(told, name)
        return jax.tree.map(self.caches.kept, pairs)

    def _bind(self, weights: Weights) -> Any:
        params = weights.params
        if weights.layers is not None:
            # The stack is not looked at: its layers are given one by one.
            stack = self.model.abstract["decoder"]["blocks"]
            params = {**params, "decoder": {**params["decoder"], "blocks": stack}}
        return self.model.bind(params)


def _joined(layer: Params) -> Params:
    """A layer, or those of a pattern, with joint kernels of its attention to the own tokens."""
    return {
        name: join(part) if name == "attention" else _joined(part) if name.startswith("block_") else part
        for name, part in layer.items()
    }


def _inputs(dims: tuple[str, ...]) -> int:
    """How many of a kernel's dimensions, the first ones, its product sums over; 0 for what is not one such kernel."""
    if len(dims) < 2 or "expert" in dims:
        return 0
    return 1 if dims[0] == "embed" else len(dims) - 1 if dims[-1] == "embed" else 0
