"""What a device does with keys: scores of blocks of queries by tiles of keys, and a softmax that takes them in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.layers.mask import Places, visible
from pathways_lm.layers.position import relative_buckets
from pathways_lm.sharding import Rules

# Queries and keys that are looked at together. What is held at a time are the scores of so many by so many.
BLOCK = 512
TILE = 512
NEVER = float(jnp.finfo(jnp.float32).min)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys", "table_RN"],
    meta_fields=["causal", "max_distance", "window", "by"],
)
@dataclass(frozen=True)
class View:
    """Who sees whom, and at what distance: a `Sight` without anything as large as length x length."""

    queries: Places
    """Laid on devices (`kernels.zigzag`), each with its part."""
    keys: Places
    """Laid, and whole on every device: a few numbers a token."""
    causal: bool
    table_RN: Array | None = None
    """What is added to the scores for each of R relative positions, cut along heads."""
    max_distance: int = 0
    """Of relative positions."""
    window: int = 0
    """Positions that a query sees at most, where that is not 0."""
    by: str = "blocked"
    """Which attention, by its name in `kernels.choice`."""


class Known(NamedTuple):
    """What a device knows beside queries, keys and values."""

    view: View
    at_T: Array
    """Where its queries stand, apart from documents."""
    at_S: Array
    """Where the keys of all devices stand."""


class Softmax(NamedTuple):
    """The softmax of the scores so far and the values it weighs, in fp32."""

    largest_BKTG: Array
    total_BKTG: Array
    values_BKTGH: Array

    @classmethod
    def of_nothing(cls, q_BTKGH: Array) -> "Softmax":
        """Before any key is seen; dimensions before those of one block are kept."""
        zeros = jnp.zeros_like(jnp.swapaxes(q_BTKGH, -4, -3), jnp.float32)
        return cls(zeros[..., 0] + NEVER, zeros[..., 0], zeros)

    def taking_in(self, scores_BKTGS: Array, mask: Array, v_BSKH: Array) -> "Softmax":
        """With more keys. A query that sees none of them stays as it is."""
        largest = jnp.maximum(self.largest_BKTG, jnp.max(scores_BKTGS, axis=-1))
        shrunk = jnp.exp(self.largest_BKTG - largest)
        weights = jnp.where(mask, jnp.exp(scores_BKTGS - largest[..., None]), 0)
        values = product("bktgs,bskh->bktgh", weights.astype(v_BSKH.dtype), v_BSKH)
        total = self.total_BKTG * shrunk + jnp.sum(weights, axis=-1)
        return Softmax(largest, total, self.values_BKTGH * shrunk[..., None] + values)

    def result(self) -> tuple[Array, Array]:
        """The weighted values, zeros where no key was seen, and the logarithm of what they were divided by."""
        total = jnp.where(self.total_BKTG > 0, self.total_BKTG, 1)
        return self.values_BKTGH / total[..., None], self.largest_BKTG + jnp.log(total)


class Tile(NamedTuple):
    """Some neighbouring keys of the device whose keys are visiting."""

    begin: Array
    """Of its keys."""
    fresh: Array
    """The first of them that no tile before has: where tiles do not come out even, the last one overlaps."""
    owner: Array | int
    """The device that they belong to."""
    size: int

    def of(self, kv_BSKH: Array) -> Array:
        """The tile's keys or values."""
        return jax.lax.dynamic_slice_in_dim(kv_BSKH, self.begin, self.size, axis=1)

    def add(self, sums_BSKH: Array, more: Array) -> Array:
        """With the tile's part added."""
        return jax.lax.dynamic_update_slice_in_dim(sums_BSKH, self.of(sums_BSKH) + more, self.begin, axis=1)


class Device:
    """One device's queries by blocks, and how they score the tiles of keys.

    A sequence on several devices lies in two chunks on each, otherwise in one. Blocks and tiles keep to the chunks.
    """

    def __init__(
        self, q: Array, kv_shape: tuple[int, ...], table: Array | None, known: Known, rules: Rules, scaled: bool
    ):
        # Otherwise JAX finds that masks depend on nothing that layers change, and makes those of all blocks and tiles,
        # length x length, in front of the loop over layers.
        q, known = jax.lax.optimization_barrier((q, known))
        self.T, (self.S, self.kv_heads) = q.shape[1], kv_shape[1:3]
        self.scale = q.shape[-1] ** -0.5 if scaled else 1.0
        self.table = table
        self.known = known
        self.devices = rules.parts("length")
        self.index = jax.lax.axis_index(rules.axes("length")) if self.devices > 1 else 0
        self.chunks = 2 if self.devices > 1 else 1
        chunk_T, self.chunk_S = self.T // self.chunks, self.S // self.chunks
        self.blocks = -(-chunk_T // BLOCK)
        self.block_size = -(-chunk_T // self.blocks)
        self.tile_size = min(TILE, self.chunk_S)
        self.tiles = -(-self.chunk_S // self.tile_size)
        self.q = self.by_block(q) * self.scale
        self.at = self.cut(known.at_T, 0)
        self.places = jax.tree.map(partial(self.cut, axis=1), known.view.queries)

    def by_block(self, x_BTNH: Array) -> Array:
        """Queries or outputs by blocks and key heads, [blocks, B, T', K, N / K, H]; filled up with zeros."""
        B, T, N, H = x_BTNH.shape
        return self.cut(jnp.reshape(x_BTNH, (B, T, self.kv_heads, N // self.kv_heads, H)), 1)

    def joined(self, blocks: Array, axis: int) -> Array:
        """What blocks have of each query, as a dimension `axis` of all."""
        sizes = blocks.shape[1:]
        parts = jnp.reshape(blocks, (self.chunks, self.blocks, *sizes))
        parts = jnp.moveaxis(parts, (0, 1), (axis, axis + 1))
        padded = (*sizes[:axis], self.chunks, self.blocks * self.block_size, *sizes[axis + 1 :])
        chunks = jax.lax.slice_in_dim(jnp.reshape(parts, padded), 0, self.T // self.chunks, axis=axis + 1)
        return jnp.reshape(chunks, (*sizes[:axis], self.T, *sizes[axis + 1 :]))

    def cut(self, rows: Array, axis: int) -> Array:
        """The inverse of `joined`."""
        before, after = rows.shape[:axis], rows.shape[axis + 1 :]
        chunks = jnp.reshape(rows, (*before, self.chunks, self.T // self.chunks, *after))
        missing = self.blocks * self.block_size - self.T // self.chunks
        if missing:
            ends = [(0, 0)] * chunks.ndim
            ends[axis + 1] = (0, missing)
            chunks = jnp.pad(chunks, ends)
        parts = jnp.reshape(chunks, (*before, self.chunks * self.blocks, self.block_size, *after))
        return jnp.moveaxis(parts, axis, 0)

    def visit(self, turn: Array | int, work: Callable[[Any, Array, Tile], Any], state: Any) -> Any:
        """`state = work(state, block, tile)` for blocks of queries and tiles of the visiting keys that may see them.

        Which those are is told by lists, of equal length on all devices: nothing is computed to be thrown away, and
        nothing depends on what a device finds.
        """
        owner = (self.index - turn) % self.devices

        def body(state: Any, pair: Array) -> tuple[Any, None]:
            late, number = pair[1] // self.tiles, pair[1] % self.tiles
            fresh = late * self.chunk_S + number * self.tile_size
            begin = jnp.minimum(fresh, (late + 1) * self.chunk_S - self.tile_size)
            return work(state, pair[0], Tile(begin, fresh, owner, self.tile_size)), None

        return jax.lax.scan(body, state, self._pairs(turn, owner))[0]

    def _pairs(self, turn: Array | int, owner: Array | int) -> Array:
        """int32 [pairs, 2]: numbers of a block and of a tile."""
        view = self.known.view
        block, tile = np.indices((self.chunks * self.blocks, self.chunks * self.tiles)).reshape(2, -1)
        late, before = block >= self.blocks, tile < self.tiles
        pairs = np.stack([block, tile], axis=1).astype(np.int32)
        if not view.causal or view.keys.prefix_BL is not None:
            return jnp.asarray(pairs)
        if isinstance(turn, int) and turn == 0:
            # Its own keys, which lie in the order of the text.
            first_T = block // self.blocks * self.chunk_S + block % self.blocks * self.block_size
            first_S = tile // self.tiles * self.chunk_S + tile % self.tiles * self.tile_size
            seen = first_S < first_T + self.block_size
            if view.window:
                seen &= first_S + self.tile_size > first_T - view.window + 1
            return jnp.asarray(pairs[seen])
        # Of a device before, all see its early chunk and none its late one; of one behind, late queries see both.
        return jnp.where(owner < self.index, pairs[before], pairs[late])

    def scores(self, block: Array, k_BSKH: Array, tile: Tile) -> tuple[Array, Array]:
        """Scores [B, K, T, G, S] in fp32, and the mask that they are under; `B` of the mask may be 1."""
        scores = product("btkgh,bskh->bktgs", taken(self.q, block), k_BSKH)
        if self.table is not None:
            bias_TSN = self.table[self._buckets(block, tile)].astype(jnp.float32)
            bias_TSKG = jnp.reshape(bias_TSN, (*bias_TSN.shape[:2], *scores.shape[1:4:2]))
            scores = scores + jnp.transpose(bias_TSKG, (2, 0, 3, 1))
        view = self.known.view
        keys = jax.tree.map(lambda rows: self._theirs(rows, tile, 1), view.keys)
        fresh_S = tile.begin + jnp.arange(tile.size) >= tile.fresh
        mask = visible(taken(self.places, block), keys, view.causal, view.window)
        mask = (mask & fresh_S)[:, None, :, None, :]
        return jnp.where(mask, scores, NEVER), mask

    def table_gradient(self, block: Array, dscores_BKTGS: Array, tile: Tile) -> Array:
        """[R, N], of the tile's part in the table of relative positions."""
        assert self.table is not None
        by_head_TSN = jnp.transpose(jnp.sum(dscores_BKTGS, axis=0), (1, 3, 0, 2))
        by_head_TSN = jnp.reshape(by_head_TSN, (*by_head_TSN.shape[:2], -1))
        return jnp.zeros(self.table.shape, jnp.float32).at[self._buckets(block, tile)].add(by_head_TSN)

    def _buckets(self, block: Array, tile: Tile) -> Array:
        """[T, S]"""
        assert self.table is not None
        view, at_T = self.known.view, taken(self.at, block)
        at_S = self._theirs(self.known.at_S, tile, 0)
        return relative_buckets(at_T[None], at_S[None], self.table.shape[0], view.max_distance, view.causal)[0]

    def _theirs(self, rows: Array, tile: Tile, axis: int) -> Array:
        """The tile's part of what is known of all devices' keys."""
        return jax.lax.dynamic_slice_in_dim(rows, tile.owner * self.S + tile.begin, tile.size, axis)


def taken(blocks: Any, block: Array) -> Any:
    """What is one block's."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, block, keepdims=False), blocks)


def put(blocks: Any, block: Array, one: Any) -> Any:
    """All blocks' with another one's in its place."""
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, block, 0), blocks, one)


def product(subscripts: str, left: Array, right: Array) -> Array:
    """A contraction summed in fp32."""
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
