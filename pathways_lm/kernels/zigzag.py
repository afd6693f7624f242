"""The order of tokens on devices that share a sequence.

With C devices a row is cut into 2C chunks, of which device i holds chunks i and 2C-1-i. What stands late in a text
looks at much, what stands early at little: so every device has the same share of a causal mask (Llama 3,
arXiv:2407.21783, section 3.3.2). Where nothing is cut, tokens lie as they stand.
"""

import jax.numpy as jnp
from jax import Array
from jax.sharding import reshard

from pathways_lm.errors import ConfigError
from pathways_lm.sharding import Rules


def lay(rows: Array, rules: Rules, axis: int = 1) -> Array:
    """Rows in the order in which they lie on devices. They must be whole along `axis`, and still are."""
    C = rules.parts("length")
    if C == 1:
        return rows
    chunks = _split(rows, (2 * C,), axis)
    early, late = jnp.split(chunks, 2, axis=axis)
    return _joined(jnp.stack([early, jnp.flip(late, axis)], axis=axis + 1), 3, axis)


def stand(rows: Array, rules: Rules, axis: int = 1) -> Array:
    """The inverse of `lay`: rows as the text has them."""
    C = rules.parts("length")
    if C == 1:
        return rows
    pairs = jnp.moveaxis(_split(rows, (C, 2), axis), axis + 1, 0)
    return _joined(jnp.concatenate([pairs[0], jnp.flip(pairs[1], axis)], axis=axis), 2, axis)


def cut(rows_BL: Array, rules: Rules) -> Array:
    """Whole rows laid on devices, each with its own part. `B` may be 1, for all sequences alike."""
    return reshard(lay(rows_BL, rules), rules("batch" if rows_BL.shape[0] > 1 else None, "length"))


def numbers(length: int, rules: Rules) -> Array:
    """int32 [length]: what stands at each place of a laid row."""
    return lay(jnp.arange(length, dtype=jnp.int32), rules, axis=0)


def _split(rows: Array, parts: tuple[int, ...], axis: int) -> Array:
    """The dimension as `parts`, and chunks of what remains."""
    length, count = rows.shape[axis], 1
    for part in parts:
        count *= part
    if length % count:
        fits = " or ".join(str(fit) for fit in (length // count * count, -(-length // count) * count) if fit)
        raise ConfigError(f"a sequence of {length} tokens is not divisible by {count} chunks; {fits} would be")
    return jnp.reshape(rows, (*rows.shape[:axis], *parts, length // count, *rows.shape[axis + 1 :]))


def _joined(chunks: Array, dims: int, axis: int) -> Array:
    """`dims` dimensions from `axis` on as one."""
    size = 1
    for dim in chunks.shape[axis : axis + dims]:
        size *= dim
    return jnp.reshape(chunks, (*chunks.shape[:axis], size, *chunks.shape[axis + dims :]))
