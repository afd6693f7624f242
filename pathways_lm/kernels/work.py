"""What a kernel does, written into the program's names: a compiled program does not tell what is in its kernels.

`pathways-lm plan` reads it there (`plan/kernels.py`).
"""

import re
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

_WRITTEN = re.compile(r"kernel_pairs_(\d+)_length_(\d+)_block_(\d+)(_fused)?")


class Work(NamedTuple):
    """The work of an attention's kernel for one head of one sequence."""

    pairs: int
    """Pairs of a query and a key whose score is computed, those under a mask in visited blocks included."""
    length: int
    """Queries."""
    block: int
    """Queries that read a key from memory together: all, where a cache keeps it for them."""
    fused: bool
    """Whether the backward pass is one kernel, which computes scores and their gradients once."""

    def named(self) -> AbstractContextManager:
        """A scope whose name tells this of the kernels in it, and of those in their backward pass."""
        end = "_fused" if self.fused else ""
        return jax.named_scope(f"kernel_pairs_{self.pairs}_length_{self.length}_block_{self.block}{end}")


def work_in(name: str) -> Work | None:
    """What an operation's name tells of its kernel."""
    found = _WRITTEN.search(name)
    return Work(int(found[1]), int(found[2]), int(found[3]), bool(found[4])) if found else None
