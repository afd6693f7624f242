"""Keys and values of the tokens so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, reshard

from pathways_lm.config import ModelConfig
from pathways_lm.layers.attention import Codes, coded, kv_heads
from pathways_lm.sharding import Rules


class Cache(NamedTuple):
    """`S` slots for every sequence of a batch: a ring, of which a step writes the same next slot for all.

    Sequences end at the same slot whatever their lengths. The slots before a sequence are empty; in one that has gone
    on for longer than the ring, its newest token takes the place of the oldest.
    """

    layers: Any
    """Keys and values: [layers, B, K, S, H] each, or a list of each layer's [B, K, S, H]: what a head's product with
    its queries reads lies together."""
    positions_BS: Array
    """int32: where the token of a slot stands; -1 is an empty slot."""
    used: Array
    """int32: slots written so far. The next is this modulo S."""
    remembered: Any = None
    """Keys and values of what an encoder read, as `layers`."""
    read_BS: Array | None = None
    """int32: positions of what an encoder read; -1 is padding."""


class Caches(NamedTuple):
    """What caches of one model have in common."""

    config: ModelConfig
    rules: Rules
    dtype: jnp.dtype
    """int8 keeps `Codes`."""
    listed: bool
    """A layer's arrays for themselves. Not stacked, they are changed where they lie when layers are unrolled."""

    @property
    def placed(self) -> NamedSharding:
        """Where keys and values lie, of one layer where they are listed."""
        stack = () if self.listed else (None,)
        return self.rules(*stack, "batch", kv_heads(self.config, self.rules), None, None)

    def pairs(self, batch: int, slots: int) -> Any:
        """Keys and values of nothing."""
        config = self.config
        stack = () if self.listed else (config.num_layers,)
        shape = (*stack, batch, config.num_kv_heads, slots, config.head_dim)

        def nothing() -> Any:
            # From JAX 0.12 on, constants have no sharding before they are put somewhere.
            return self._stored(reshard(jnp.zeros(shape, jnp.float32), self.placed))

        def pair() -> tuple[Any, Any]:
            return nothing(), nothing()

        return [pair() for _ in range(config.num_layers)] if self.listed else pair()

    def kept(self, fresh: Array) -> Any:
        """Keys or values [..., B, S, K, H] as a cache keeps them."""
        return self._stored(jnp.swapaxes(fresh, -2, -3))

    def _stored(self, laid: Array) -> Any:
        return coded(laid) if self.dtype == jnp.int8 else laid.astype(self.dtype)

    def empty(self, batch: int, slots: int, read: int = 0) -> Cache:
        """A cache without tokens, with room for `read` tokens of an encoder."""
        rows = self.rules("batch", None)
        nowhere = reshard(jnp.full((batch, slots), -1, jnp.int32), rows)
        used = reshard(jnp.zeros((), jnp.int32), self.rules())
        if not read:
            return Cache(self.pairs(batch, slots), nowhere, used)
        read_BS = reshard(jnp.full((batch, read), -1, jnp.int32), rows)
        return Cache(self.pairs(batch, slots), nowhere, used, self.pairs(batch, read), read_BS)

    def shardings(self, read: bool) -> Any:
        """Where the arrays of a cache lie, as a `Cache`."""
        placed: Any = self.placed
        one: Any = Codes(placed, placed) if self.dtype == jnp.int8 else placed
        pair: Any = (one, one)
        held: Any = [pair] * self.config.num_layers if self.listed else pair
        rows: Any = self.rules("batch", None)
        used: Any = self.rules()
        return Cache(held, rows, used, held if read else None, rows if read else None)

    def narrow(self, cache: Cache) -> Cache:
        """As a loop on one device carries it: without rows or heads where there is one. A product leaves such a
        dimension out, after which XLA changes a copy in place of the array itself, at every step."""
        if not self._narrows:
            return cache

        def drop(leaf: Array) -> Array:
            shape = (*(size for size in leaf.shape[:2] if size > 1), *leaf.shape[2:])
            return jnp.reshape(leaf, shape, out_sharding=self.rules(*(None for _ in shape)))

        return cache._replace(layers=jax.tree.map(drop, cache.layers))

    def whole(self, cache: Cache) -> Cache:
        """What `narrow` was given."""
        if not self._narrows:
            return cache
        lead = cache.positions_BS.shape[0], self.config.num_kv_heads
        return cache._replace(
            layers=jax.tree.map(
                lambda leaf: jnp.reshape(leaf, (*lead, *leaf.shape[-2:]), out_sharding=self.placed), cache.layers
            )
        )

    @property
    def _narrows(self) -> bool:
        return self.listed and self.rules.mesh.size == 1

    def seat(self, cache: Cache, fresh: Cache, from_B: Array, lengths_R: Array) -> Cache:
        """Gives rows of a cache to sequences that begin.

        Args:
          fresh: `R` rows whose slots are in order from 0.
          from_B: which of them each row of `cache` gets; -1 keeps what it has.
          lengths_R: tokens of each; what is in later slots of `fresh` is left out.
        """
        slots = cache.positions_BS.shape[1]
        source_B, taken_B1 = jnp.maximum(from_B, 0), (from_B >= 0)[:, None]
        length_B1 = lengths_R[source_B][:, None]
        # The last token comes into the slot before the next, the one before it into that before, as far as there are.
        back_1S = jnp.mod(cache.used - 1 - jnp.arange(slots), slots)[None]
        index_BS = length_B1 - 1 - back_1S
        has_BS = taken_B1 & (index_BS >= 0)
        positions_BS = jnp.where(taken_B1, jnp.where(has_BS, index_BS, -1), cache.positions_BS)
        width = fresh.positions_BS.shape[1]
        index_BS = jnp.maximum(index_BS, 0)
        stack = () if self.listed else (slice(None),)

        def move(old: Array, new: Array) -> Array:
            if not width:
                return old
            heads_1K1 = jnp.arange(new.shape[-3])[None, :, None]
            at = (*stack, source_B[:, None, None], heads_1K1, index_BS[:, None])
            moved = new.at[at].get(out_sharding=self.placed)
            return jnp.where(reshard(has_BS, self.rules("batch", None))[:, None, :, None], moved, old)

        def copy(old: Array, new: Array) -> Array:
            grown = jnp.pad(new, [(0, 0)] * (new.ndim - 2) + [(0, old.shape[-2] - new.shape[-2]), (0, 0)])
            moved = grown.at[*stack, source_B].get(out_sharding=self.placed)
            return jnp.where(reshard(taken_B1, self.rules("batch", None))[..., None, None], moved, old)

        positions_BS = reshard(positions_BS, self.rules("batch", None))
        cache = cache._replace(layers=jax.tree.map(move, cache.layers, fresh.layers), positions_BS=positions_BS)
        if cache.read_BS is None or fresh.read_BS is None:
            return cache
        wider = cache.read_BS.shape[1] - fresh.read_BS.shape[1]
        read_RS = jnp.pad(fresh.read_BS, ((0, 0), (0, wider)), constant_values=-1)
        moved_BS = read_RS.at[source_B].get(out_sharding=self.rules("batch", None))
        return cache._replace(
            remembered=jax.tree.map(copy, cache.remembered, fresh.remembered),
            read_BS=jnp.where(reshard(taken_B1, self.rules("batch", None)), moved_BS, cache.read_BS),
        )

    def follow(self, cache: Cache, source_B: Array, start: Array | int, length: int) -> Cache:
        """Gives every row what row `source_B` has in `length` slots from `start` on. The other slots, positions and
        what an encoder read are left: rows that follow each other have them in common."""
        axis = 2 if self.listed else 3
        stack = () if self.listed else (slice(None),)

        def move(leaf: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(leaf, start, length, axis)
            part = part.at[*stack, source_B].get(out_sharding=self.placed)
            return jax.lax.dynamic_update_slice_in_dim(leaf, part, start, axis)

        return cache._replace(layers=jax.tree.map(move, cache.layers))


def put(cache: Cache, old: Array, new: Array, axis: int) -> Array:
    """An array of the cache with what is new in the next slots, which lie along `axis`."""
    length, slots = new.shape[axis], cache.positions_BS.shape[1]
    start = jnp.mod(cache.used, slots)
    if length == 1:
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=axis)
    where = (slice(None),) * axis + (jnp.mod(start + jnp.arange(length), slots),)
    return old.at[where].set(new)


def write(cache: Cache, fresh: Any, positions_BL: Array) -> Cache:
    """Puts the keys and values of `L` new tokens, as the cache keeps them, into the next slots."""
    axis = 2 if isinstance(fresh, list) else 3
    layers = jax.tree.map(lambda old, new: put(cache, old, new, axis), cache.layers, fresh)
    positions_BS = put(cache, cache.positions_BS, positions_BL, 1)
    return cache._replace(layers=layers, positions_BS=positions_BS, used=cache.used + positions_BL.shape[1])
