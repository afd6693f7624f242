"""What one device of a ring does with the keys that visit it: scores by tiles, and a softmax that takes them in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pathways_lm.layers.mask import Places, visible
from pathways_lm.layers.position import relative_buckets
from pathways_lm.sharding import Rules

# Keys that are looked at together. What is held at a time are the scores of a device's queries by so many keys.
TILE = 512
NEVER = float(jnp.finfo(jnp.float32).min)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys", "table_RN"],
    meta_fields=["causal", "max_distance"],
)
@dataclass(frozen=True)
class Ring:
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


class Known(NamedTuple):
    """What a device knows beside queries, keys and values."""

    ring: Ring
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
        """Before any key is seen."""
        zeros = jnp.zeros_like(jnp.swapaxes(q_BTKGH, 1, 2), jnp.float32)
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
    owner: Array
    """The device that they belong to."""
    size: int

    def of(self, kv_BSKH: Array) -> Array:
        """The tile's keys or values."""
        return jax.lax.dynamic_slice_in_dim(kv_BSKH, self.begin, self.size, axis=1)

    def add(self, sums_BSKH: Array, more: Array) -> Array:
        """With the tile's part added."""
        return jax.lax.dynamic_update_slice_in_dim(sums_BSKH, self.of(sums_BSKH) + more, self.begin, axis=1)


class Device:
    """One device's queries, in the two chunks that it has, and how they score keys."""

    def __init__(
        self, q: Array, kv_shape: tuple[int, ...], table: Array | None, known: Known, rules: Rules, scaled: bool
    ):
        self.S, self.kv_heads = kv_shape[1:3]
        self.scale = q.shape[-1] ** -0.5 if scaled else 1.0
        self.q = [half * self.scale for half in self.halves(q)]
        self.table = table
        self.known = known
        self.devices = rules.parts("length")
        self.index = jax.lax.axis_index(rules.axes("length"))

    def halves(self, x_BTNH: Array) -> list[Array]:
        """The two chunks of queries or outputs, by key heads: [B, T / 2, K, N / K, H] each."""
        B, T, N, H = x_BTNH.shape
        return jnp.split(jnp.reshape(x_BTNH, (B, T, self.kv_heads, N // self.kv_heads, H)), 2, axis=1)

    def tiles(self, turn: Array | int, half: int, work: Callable[[Any, Tile], Any], state: Any) -> Any:
        """`state = work(state, tile)` for the tiles of the visiting keys that some query of the half may see."""
        chunk = self.S // 2
        size = min(TILE, chunk)
        per_chunk = -(-chunk // size)
        owner = (self.index - turn) % self.devices
        ring = self.known.ring
        ordered = ring.causal and ring.keys.prefix_BL is None

        def body(state: Any, number: Array) -> tuple[Any, None]:
            late, fresh = number // per_chunk, number % per_chunk * size
            tile = Tile(late * chunk + jnp.minimum(fresh, chunk - size), late * chunk + fresh, owner, size)
            if not ordered:
                return work(state, tile), None
            seen = self._chunk(owner, late) <= self._chunk(self.index, half)
            return jax.lax.cond(seen, lambda state: work(state, tile), lambda state: state, state), None

        return jax.lax.scan(body, state, jnp.arange(2 * per_chunk))[0]

    def _chunk(self, device: Array, late: Array | int) -> Array:
        """The number of a device's early or late chunk in the text."""
        return jnp.where(late == 0, device, 2 * self.devices - 1 - device)

    def scores(self, half: int, k_BSKH: Array, tile: Tile) -> tuple[Array, Array]:
        """Scores [B, K, T, G, S] in fp32, and the mask that they are under; `B` of the mask may be 1."""
        scores = product("btkgh,bskh->bktgs", self.q[half], k_BSKH)
        if self.table is not None:
            bias_TSN = self.table[self._buckets(half, tile)].astype(jnp.float32)
            bias_TSKG = jnp.reshape(bias_TSN, (*bias_TSN.shape[:2], *scores.shape[1:4:2]))
            scores = scores + jnp.transpose(bias_TSKG, (2, 0, 3, 1))
        ring = self.known.ring
        queries = jax.tree.map(lambda rows: jnp.split(rows, 2, axis=1)[half], ring.queries)
        keys = jax.tree.map(lambda rows: self._theirs(rows, tile, 1), ring.keys)
        fresh_S = tile.begin + jnp.arange(tile.size) >= tile.fresh
        mask = (visible(queries, keys, ring.causal) & fresh_S)[:, None, :, None, :]
        return jnp.where(mask, scores, NEVER), mask

    def table_gradient(self, half: int, dscores_BKTGS: Array, tile: Tile) -> Array:
        """[R, N], of the tile's part in the table of relative positions."""
        assert self.table is not None
        by_head_TSN = jnp.transpose(jnp.sum(dscores_BKTGS, axis=0), (1, 3, 0, 2))
        by_head_TSN = jnp.reshape(by_head_TSN, (*by_head_TSN.shape[:2], -1))
        return jnp.zeros(self.table.shape, jnp.float32).at[self._buckets(half, tile)].add(by_head_TSN)

    def _buckets(self, half: int, tile: Tile) -> Array:
        """[T, S]"""
        assert self.table is not None
        ring, at_T = self.known.ring, jnp.split(self.known.at_T, 2)[half]
        at_S = self._theirs(self.known.at_S, tile, 0)
        return relative_buckets(at_T[None], at_S[None], self.table.shape[0], ring.max_distance, ring.causal)[0]

    def _theirs(self, rows: Array, tile: Tile, axis: int) -> Array:
        """The tile's part of what is known of all devices' keys."""
        return jax.lax.dynamic_slice_in_dim(rows, tile.owner * self.S + tile.begin, tile.size, axis)


def product(subscripts: str, left: Array, right: Array) -> Array:
    """A contraction summed in fp32."""
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
