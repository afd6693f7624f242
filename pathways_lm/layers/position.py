"""Rotary positions."""

import jax.numpy as jnp
from jax import Array


def rotary_angles(positions_BL: Array, head_dim: int, base: float) -> tuple[Array, Array]:
    """Cosine and sine of position / base^(2i / head_dim), each [B, L, head_dim / 2] in fp32."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BL[:, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLNH: Array, angles: tuple[Array, Array]) -> Array:
    """Turns the pairs (i, i + H/2) of each head by its position's angles (RoFormer, arXiv:2104.09864).

    Pairs are the halves of a head, not neighbours, as in the open Google layers.
    """
    cos, sin = (angle[:, :, None, :] for angle in angles)
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLNH.dtype)
