"""Functions that the backward pass computes again."""

from collections.abc import Callable
from typing import Any

import jax


def computed_again(function: Callable, apart: bool = True) -> Callable:
    """The function, for whose gradient nothing but its arguments is kept.

    `jax.checkpoint` within another one is ruled by the other's policy, and that of `Stack` keeps all but parameters.

    Args:
      apart: whether also where forward and backward pass are one computation, in which XLA would otherwise find the
        forward pass's values and keep them, as is faster where memory allows.
    """

    def forward(*arguments: Any) -> tuple[Any, Any]:
        return function(*arguments), arguments

    def backward(arguments: Any, cotangent: Any) -> Any:
        if apart:
            arguments, cotangent = jax.lax.optimization_barrier((arguments, cotangent))
        return jax.vjp(function, *arguments)[1](cotangent)

    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(forward, backward)
    return wrapped
