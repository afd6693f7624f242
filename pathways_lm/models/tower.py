"""A stack of blocks: the decoder of a language model, or the encoder or decoder of a pair."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.choice import Asked, choose
from pathways_lm.kernels.zigzag import cut, lay
from pathways_lm.layers.attention import Sight, Store
from pathways_lm.layers.mask import Places, visible
from pathways_lm.layers.norm import Norm
from pathways_lm.layers.position import RelativeBias, relative_buckets, rotary_angles
from pathways_lm.layers.stack import Stack
from pathways_lm.layers.tiles import View
from pathways_lm.models.block import Block, Out, Own, Scene
from pathways_lm.sharding import Rules


class Layers(NamedTuple):
    """What every layer of a decoder has when it goes on: stacked along a leading dimension, or, where its parameters
    are given one by one, lists."""

    cached: Any
    """Keys and values [B, K, S, H] of each layer, `KeyValue`."""
    remembered: Any = None
    """Keys and values of the encoder's output, from `Out.remembered`."""
    parameters: list[Any] | None = None
    """Of each layer, or of each repeat of a pattern. None: those of the stack."""
    store: Store | None = None
    """Puts a layer's new keys and values into its cache, before that is attended to."""


class Pattern(nnx.Module):
    """The `every` layers that repeat in a tower with experts: one of them sparse, the others dense."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules, cross: bool):
        self.every = config.moe.every
        sparse = config.moe.offset % self.every
        for index in range(self.every):
            setattr(self, f"block_{index}", Block(config, rngs, rules, cross, sparse=index == sparse))

    def __call__(self, x_BLD: Array, scene: Scene, owns: Own | list[Own]) -> tuple[Array, tuple[Out, ...]]:
        """Applies the blocks. `owns` has a leading dimension of `every`, or is a list of so many."""
        outs = []
        for index in range(self.every):
            listed = isinstance(owns, list)
            own = owns[index] if listed else jax.tree.map(lambda leaf, index=index: leaf[index], owns)
            x_BLD, out = getattr(self, f"block_{index}")(x_BLD, scene, own)
            outs.append(out)
        return x_BLD, tuple(outs)


class Tower(nnx.Module):
    """Blocks, and the norm at their end where the blocks have theirs in front.

    Args:
      causal: tokens see what stands before them only.
      cross: blocks look at an encoder's output, too.
    """

    def __init__(
        self, config: ModelConfig, num_layers: int, rngs: nnx.Rngs, rules: Rules, causal: bool, cross: bool = False
    ):
        self.patterned = config.moe.num_experts > 0 and config.moe.every > 1
        self.every = config.moe.every if self.patterned else 1

        def build(rngs: nnx.Rngs) -> nnx.Module:
            if self.patterned:
                return Pattern(config, rngs, rules, cross)
            return Block(config, rngs, rules, cross, sparse=config.moe.num_experts > 0)

        repeats = num_layers // self.every
        self.blocks = Stack(build, repeats, rngs, rules, config.remat, unroll=min(config.unroll, repeats))
        if config.block != "post_norm":
            self.norm = Norm(config, rules)
        if config.positions == "relative":
            self.relative_bias = RelativeBias(config, rngs, rules)
        self.num_layers = num_layers
        self.causal = causal
        self.config = config
        self.rules = rules

    def __call__(
        self,
        x_BTD: Array,
        queries: Places,
        keys: Places,
        memory: tuple[Array, Places] | None = None,
        key: Array | None = None,
        show: bool = False,
    ) -> tuple[Array, Out]:
        """Applies all blocks.

        Args:
          x_BTD: embeddings, cut as the residual stream.
          queries, keys: places of the input; in the order of the text, and whole.
          memory: an encoder's output and places.
          key: for dropout and routers; None in evaluation.
          show: also give attention weights and gates.

        Returns:
          The last block's output, which `close` normalises, and what the blocks tell: each array has a leading
          dimension of layers, routing of MoE layers only.
        """
        trains, by = key is not None, ("plain", "plain")
        if not show:
            # Who asks to see the weights gets them whole, from keys that are gathered.
            by = self._chosen(x_BTD, queries, keys, memory, trains)
        scene = self._scene(queries, keys, memory, self.relative(queries, keys, by[0]), by, show)
        own = Own(key=self.layer_keys(key))
        x_BTD, outs = self.blocks(x_BTD, scene, per_layer=self._fold_all(own))
        return x_BTD, self._by_layer(outs)

    def extend(
        self, x_BTD: Array, queries: Places, keys: Places, memory: tuple[Array | None, Places] | None, layers: Layers
    ) -> tuple[Array, Out | list[Out]]:
        """Applies all blocks to what follows cached positions.

        Args:
          queries, keys: places of the input, and of the cached positions followed by the input; of the cache with
            the input in it where that is stored first.
          memory: an encoder's places, and its output where its keys and values are not in `layers`.

        Returns:
          The last block's output, and what the blocks tell of their keys and values: as `layers`, with a leading
          dimension or one by one.
        """
        by = ("plain", "plain")
        scene = self._scene(queries, keys, memory, self.relative(queries, keys, by[0]), by)
        scene = scene._replace(store=layers.store)
        own = Own(layers.cached, layers.remembered)
        if layers.parameters is None:
            x_BTD, outs = self.blocks(x_BTD, scene, per_layer=self._fold_all(own))
            return x_BTD, self._by_layer(outs)
        remembered = layers.remembered or [None] * self.num_layers
        owns: list[Any] = [Own(*pair) for pair in zip(layers.cached, remembered, strict=True)]
        if self.patterned:
            owns = [owns[first : first + self.every] for first in range(0, self.num_layers, self.every)]
        x_BTD, outs = self.blocks.run(layers.parameters, x_BTD, scene, per_layer=owns)
        return x_BTD, [out for group in outs for out in group] if self.patterned else outs

    def close(self, x_BTD: Array) -> Array:
        """The norm behind the last block."""
        return x_BTD if self.config.block == "post_norm" else self.norm(x_BTD)

    def part(
        self,
        stacked: Any,
        x_BTD: Array,
        queries: Places,
        memory: tuple[Array, Places] | None,
        relative: Array | None,
        keys: Array | None,
        missing: Array,
    ) -> tuple[Array, Out]:
        """Applies some of the blocks: those of a stage of a pipeline.

        Args:
          stacked: their parameters.
          relative: as `relative` gives it.
          keys: of their layers, from `layer_keys`.
          missing: bool, true for blocks that only fill up.
        """
        by = self._chosen(x_BTD, queries, queries, memory, trains=keys is not None)
        scene = self._scene(queries, queries, memory, relative, by)
        own = self._fold_all(Own(key=keys))
        x_BTD, outs = self.blocks.run(stacked, x_BTD, scene, per_layer=own, missing=missing)
        return x_BTD, self._by_layer(outs)

    def asked(
        self, rows: int, queries: Places, keys: Places, trains: bool, cross: bool = False, half: bool = True
    ) -> Asked:
        """What the layers' attention must do: to themselves or, for `cross`, to an encoder's output.

        Args:
          rows: sequences of the microbatch.
          trains: whether there is a key, for dropout.
          half: whether the arithmetic is in bf16 or fp16.
        """
        config = self.config
        return Asked(
            rows=rows,
            queries=queries.positions_BL.shape[1],
            keys=keys.positions_BL.shape[1],
            causal=self.causal and not cross,
            packed=queries.segments_BL is not None or keys.segments_BL is not None,
            prefix=self.causal and not cross and keys.prefix_BL is not None,
            relative=config.positions in ("relative", "relative_per_layer") and not cross,
            drops=trains and config.dropout > 0,
            half=half,
            gapless=all(each.segments_BL is not None or each.positions_BL.shape[0] == 1 for each in (queries, keys)),
        )

    def _chosen(
        self, x_BTD: Array, queries: Places, keys: Places, memory: tuple[Array | None, Places] | None, trains: bool
    ) -> tuple[str, str]:
        """The attentions to own tokens and to an encoder's, by their names in `kernels.choice`."""
        rows, half = x_BTD.shape[0], x_BTD.dtype.itemsize == 2
        own = choose(self.config, self.rules, self.asked(rows, queries, keys, trains, half=half)).name
        if memory is None:
            return own, "plain"
        cross = self.asked(rows, queries, memory[1], trains, cross=True, half=half)
        return own, choose(self.config, self.rules, cross).name

    def relative(self, queries: Places, keys: Places, by: str) -> Array | None:
        """What all layers share of relative positions, where they do: the bias [B, T, S, N], or for others than
        `plain` attention its table.

        B is 1 for whole sequences.
        """
        if self.config.positions != "relative":
            return None
        if by != "plain":
            # What a scan closes over must be told how it lies.
            return reshard(self.relative_bias.table[...], self.rules("norm", "heads"))
        return self.relative_bias(self._buckets(queries, keys))

    def layer_keys(self, key: Array | None) -> Array | None:
        """Each layer's key, [layers]."""
        return None if key is None else jax.random.split(key, self.num_layers)

    def _buckets(self, queries: Places, keys: Places) -> Array:
        buckets, distance = self.config.relative_buckets, self.config.relative_max_distance
        at_BT, at_BS = cut(_distances(queries), self.rules), _distances(keys)
        return relative_buckets(at_BT, at_BS, buckets, distance, self.causal)

    def _scene(
        self,
        queries: Places,
        keys: Places,
        memory: tuple[Array | None, Places] | None,
        relative: Array | None,
        by: tuple[str, str],
        show: bool = False,
    ) -> Scene:
        config, rules = self.config, self.rules
        laid: Places = jax.tree.map(lambda rows_BL: cut(rows_BL, rules), queries)
        angles = memory_BSD = memory_sight = buckets_BTS = None
        if config.positions == "rotary":
            angles = rotary_angles(laid.positions_BL, config.head_dim, config.rope_base)
        window = config.window if self.causal else 0
        if by[0] != "plain":
            sight = Sight(None, angles, view=self._view(laid, keys, self.causal, relative, window, by[0]))
        else:
            buckets_BTS = self._buckets(queries, keys) if config.positions == "relative_per_layer" else None
            sight = Sight(visible(laid, keys, self.causal, window), angles, relative)
        if memory is not None:
            memory_BSD = None if memory[0] is None else reshard(memory[0], rules("batch", "length", None))
            if by[1] != "plain":
                memory_sight = Sight(None, view=self._view(laid, memory[1], False, None, 0, by[1]))
            else:
                memory_sight = Sight(visible(laid, memory[1], causal=False))
        return Scene(sight, _valid(queries), buckets_BTS, memory_BSD, memory_sight, show=show)

    def _view(self, laid: Places, keys: Places, causal: bool, table_RN: Array | None, window: int, by: str) -> View:
        """Of queries that are laid and keys in the order of the text."""

        def everywhere(rows_BL: Array) -> Array:
            # From JAX 0.12 on, positions that were counted from segments no longer know how they lie.
            batch = "batch" if rows_BL.shape[0] > 1 else None
            return reshard(lay(rows_BL, self.rules), self.rules(batch, None))

        around = jax.tree.map(everywhere, keys)
        return View(laid, around, causal, table_RN, self.config.relative_max_distance, window, by)

    def _fold_all(self, own: Own) -> Own:
        return jax.tree.map(self._fold, own) if self.patterned else own

    def _fold(self, leaf: Array) -> Array:
        """[layers, ...] to [repeats, every, ...]"""
        return jnp.reshape(leaf, (leaf.shape[0] // self.every, self.every, *leaf.shape[1:]))

    def _by_layer(self, outs: Any) -> Out:
        """What every layer tells, in their order."""
        if not self.patterned:
            return outs
        merged = {}
        for name in Out._fields:
            parts = [getattr(out, name) for out in outs if getattr(out, name) is not None]
            if not parts:
                continue
            count = len(parts)

            def interleave(*leaves: Array, count: int = count) -> Array:
                return jnp.reshape(jnp.stack(leaves, axis=1), (leaves[0].shape[0] * count, *leaves[0].shape[1:]))

            merged[name] = jax.tree.map(interleave, *parts)
        return Out(**merged)


def _distances(places: Places) -> Array:
    """Positions whose differences are those within a document, one row for all sequences where that is so."""
    if places.segments_BL is None:
        return places.positions_BL
    return jnp.arange(places.positions_BL.shape[1], dtype=jnp.int32)[None]


def _valid(places: Places) -> Array | None:
    if places.segments_BL is not None:
        return places.segments_BL > 0
    return places.positions_BL >= 0 if places.positions_BL.shape[0] > 1 else None
