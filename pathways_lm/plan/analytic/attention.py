"""Attention of one turn of the loop over layers: its products, and what of scores moves through memory or stays."""

from typing import NamedTuple

from pathways_lm.kernels import splash
from pathways_lm.layers import tiles
from pathways_lm.plan.analytic.parameters import Parameter
from pathways_lm.plan.analytic.work import FP32, Tower, Work
from pathways_lm.plan.program_arithmetic import Arithmetic


class _Seen(NamedTuple):
    """Of one attention on a device."""

    by: str
    pairs: float
    """Scores that are computed."""
    blocks: float
    """How often a device's keys and values are read: by so many blocks of queries."""
    head_dim: int
    ends: float
    """Bytes of queries and keys, or of values and outputs."""


def _seen(work: Work, tower: Tower, query: Parameter) -> _Seen:
    heads, size = work.cuts.sizes(query)[1:]
    cross = query.module == "cross"
    seen = tower.memory if cross else tower.seen
    by = work.attentions["cross" if cross else tower.name].name
    share, blocks = 1.0, 1.0
    causal, window = tower.name == "decoder" and not cross, work.model.window
    if by == "splash":
        block = splash.block_of(tower.length)
        share = splash.visited(tower.length, seen, causal, window) * block * splash.block_of(seen)
        share /= tower.length * seen
        blocks = share * tower.length / block
    elif by == "blocked" and causal and not work.has_prefix:
        # Blocks and tiles come in equal numbers, of which half and the diagonal are seen.
        count = -(-tower.seen // tiles.TILE)
        share = (count + 1) / (2 * count)
    elif by in ("cudnn", "triton") and causal:
        share = 0.5
    pairs = share * tower.tokens * heads * seen
    ends = work.item * (tower.tokens + tower.rows * seen) * heads * size
    return _Seen(by, pairs, blocks, size, ends)


def attention(work: Work, tower: Tower, query: Parameter) -> list[Arithmetic]:
    """Scores and weighted values of one attention: 4 H Q T a token forward, and the softmax between."""
    seen = _seen(work, tower, query)
    flops = 2 * seen.pairs * seen.head_dim
    if is_kernel(seen.by):
        return [Arithmetic(2 * flops, 2 * max(1.0, seen.blocks) * seen.ends, "attention")]
    # Scores are fp32. A TPU reads them once for the sum and again as weights; a GPU for the maximum, for the sum, and
    # to write weights in the type of the arithmetic.
    softmax, weights = (FP32, FP32) if work.fused else (2 * FP32 + work.item, work.item)
    return [
        Arithmetic(flops, seen.ends + FP32 * seen.pairs, "scores"),
        Arithmetic(0.0, softmax * seen.pairs, "softmax"),
        Arithmetic(flops, seen.ends + weights * seen.pairs, "values"),
    ]


def attention_gradients(work: Work, tower: Tower, query: Parameter) -> list[Arithmetic]:
    """Four products, and the softmax's gradient between: weights and what their gradients are, read and written.

    Where weights were not kept, a fifth product makes them again; with two kernels, each makes all it needs.
    """
    seen = _seen(work, tower, query)
    if is_kernel(seen.by):
        length = tower.memory if query.module == "cross" else tower.seen
        fused = seen.by == "cudnn" or (seen.by == "splash" and splash.is_fused(length))
        products, passes = (5, 1) if fused else (7, 2)
        flops = 2 * products * seen.pairs * seen.head_dim
        return [Arithmetic(flops, passes * 4 * max(1.0, seen.blocks) * seen.ends, "attention")]
    _, softmax, values = attention(work, tower, query)
    through = Arithmetic(0.0, 2 * softmax.memory_bytes if work.fused else softmax.memory_bytes, "softmax")
    again = weights_again(work, tower, query) if seen.by == "blocked" else []
    return [*again, *([values] * 4), through]


def weights_again(work: Work, tower: Tower, query: Parameter) -> list[Arithmetic]:
    """Scores and softmax: the weighted values themselves are what is kept. A kernel makes them again by itself."""
    seen = _seen(work, tower, query)
    return [] if is_kernel(seen.by) else attention(work, tower, query)[:2]


def kept_scores(work: Work, tower: Tower, query: Parameter) -> float:
    """Bytes that the backward pass finds of an attention's weights: all, or the logarithm of their sum."""
    seen = _seen(work, tower, query)
    if seen.by == "plain":
        return (FP32 + work.item) * seen.pairs
    return FP32 * tower.tokens * work.cuts.sizes(query)[1]


def working_scores(work: Work, tower: Tower, query: Parameter) -> float:
    """Bytes of scores and their gradients at work."""
    seen = _seen(work, tower, query)
    if is_kernel(seen.by):
        return 0.0
    if seen.by == "blocked":
        heads = work.cuts.sizes(query)[1]
        return 2.0 * FP32 * tower.rows * heads * min(tiles.BLOCK, tower.length) * min(tiles.TILE, tower.length)
    return 2.0 * FP32 * seen.pairs


def is_kernel(by: str) -> bool:
    """Whether no score leaves the chip."""
    return by in ("splash", "cudnn", "triton")
