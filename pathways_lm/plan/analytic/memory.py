"""What lies on a device at the fullest moment of a step, by formulas."""

from pathways_lm.data.objectives import abstract_batch
from pathways_lm.kernels.cross_entropy import LOGITS_BYTES_ELSEWHERE
from pathways_lm.layers.moe.router import capacity
from pathways_lm.plan.analytic.arithmetic import (
    expert_places,
    group_tokens,
    moment_bytes,
    stream_parts,
)
from pathways_lm.plan.analytic.attention import kept_scores, working_scores
from pathways_lm.plan.analytic.parameters import Parameter
from pathways_lm.plan.analytic.work import BLOCKS, FP32, Tower, Work
from pathways_lm.plan.memory import Memory

# Arrays as large as a product's cut end that its gradient and those of what stands around it need: queries also turned
# and scaled. Hidden units are made again of what the first kernels gave.
_STEPS = {"query": 2, "key": 1, "value": 1, "out": 1, "gate": 1, "up": 1}


def zero_bytes(
    used: float, stored: float, zero: int, weight: float, gradient: float, state: float
) -> tuple[float, float, float]:
    """Weights, gradients and state of parameters on a device (ZeRO, arXiv:1910.02054, section 5).

    Args:
      used: numbers that a device's products need.
      stored: numbers of which it keeps the state where that is cut.
      zero: the stage, 0 to 3.
      weight, gradient, state: bytes of each number: the paper's are 2, 2 and 12.
    """
    return (
        weight * (stored if zero == 3 else used),
        gradient * (stored if zero >= 2 else used),
        state * (stored if zero >= 1 else used),
    )


def memory_of(work: Work, capacity_bytes: float) -> Memory:
    """The parts of a device's memory."""
    parameters = optimizer = gradients = held = 0.0
    for each in work.parameters:
        layers = work.cuts.layers(each)
        used, stored = layers * work.cuts.used(each), layers * work.cuts.stored(each)
        weight = each.item_bytes(work.item) if each.item_bytes(work.item) != FP32 or work.cuts.rules.zero < 3 else 0
        # Of a microbatch, in the type of the arithmetic, and where there are several, their sum.
        gradient = work.item if work.microbatches == 1 else FP32
        told = zero_bytes(used, stored, work.cuts.rules.zero, weight, gradient, FP32)
        held += told[0]
        gradients += told[1]
        parameters += told[2]
        optimizer += 0 if work.cuts.rules.offload else layers * moment_bytes(work, each)
    saved = sum(_saved(work, tower) for tower in work.towers)
    layer = max(_working(work, tower) for tower in work.towers)
    details = {
        "weights in the type of the arithmetic": held,
        "activations kept for the backward pass": saved,
        "a layer at work, or logits": max(layer + _fresh(work), _logits(work)),
    }
    rest = sum(details.values())
    return Memory(parameters, optimizer, _batch(work), gradients, rest, capacity_bytes, tuple(details.items()))


def _batch(work: Work) -> float:
    """The step's batch, in whole numbers."""
    arrays = [leaf for leaf in abstract_batch(work.experiment.data) if leaf is not None]
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) / work.cuts.parts["batch"])


# --- activations


def _saved(work: Work, tower: Tower) -> float:
    """What all turns of a tower keep for the backward pass, of all microbatches that are on their way."""
    turn = 0.0 if work.model.remat == "offload" else kept_of_turn(work, tower)
    if work.stages == 1:
        return tower.repeats * turn
    # A stage keeps what enters each of its chunks, and while one is worked at, what its layers keep.
    chunks, microbatches = work.chunks, work.microbatches
    under_way = chunks * microbatches
    if work.experiment.train.pipeline == "1f1b":
        under_way = min(under_way, 2 * chunks * work.stages - 1)
    return under_way * _stream(work, tower) + -(-tower.repeats // chunks) * turn


def _stream(work: Work, tower: Tower) -> float:
    """Activations between blocks."""
    cuts = work.cuts
    parts = cuts.parts["residual"] * stream_parts(cuts)
    return work.item * tower.tokens * work.model.embed_dim / parts


def _whole(work: Work, tower: Tower) -> float:
    return float(work.item * tower.tokens * work.model.embed_dim)


def kept_of_turn(work: Work, tower: Tower) -> float:
    """What one turn keeps for the backward pass."""
    stream = _stream(work, tower)
    if work.model.remat in BLOCKS:
        return stream
    # ZeRO's third stage gathers parameters again.
    weights = _weights(work, tower) if work.cuts.rules.zero < 3 else 0.0
    return _inside(work, tower, scores=work.model.remat == "none") + weights


def _inside(work: Work, tower: Tower, scores: bool) -> float:
    """What the gradients of a turn need: inputs of products, activations and norms, and the weights of attention."""
    item, cuts = work.item, work.cuts
    stream, whole = _stream(work, tower), _whole(work, tower)
    kept = 0.0
    for each in work.of(tower.name):
        used = cuts.used(each)
        if each.name == "scale":
            # What a norm is given, as cut as the stream, and what it gives, whole.
            kept += stream + whole
        kept += _STEPS.get(each.name, 0) * item * _rows_of(work, tower, each) * used / work.model.embed_dim
        if each.name == "query":
            kept += kept_scores(work, tower, each) if scores else 0.0
        if each.name == "router":
            kept += _routed(work, tower)
    return kept


def _rows_of(work: Work, tower: Tower, each: Parameter) -> int:
    if each.is_expert:
        return expert_places(work, tower)
    return tower.rows * tower.memory if each.module == "cross" and each.name in ("key", "value") else tower.tokens


def _routed(work: Work, tower: Tower) -> float:
    """Tokens in their places, before and behind the experts; with one-hot masks, those."""
    moe, size = work.model.moe, group_tokens(work, tower)
    slots = tower.tokens // size * capacity(moe, size, training=True) * moe.num_experts
    masks = 2 * work.item * tower.tokens * slots // (tower.tokens // size) if moe.dispatch == "einsum" else 0
    return 2.0 * work.item * slots * work.model.embed_dim + masks


def _weights(work: Work, tower: Tower) -> float:
    """Parameters of a turn as they are used. Each turn's are kept like activations where nothing is computed again."""
    return sum(each.item_bytes(work.item) * work.cuts.used(each) for each in work.of(tower.name) if each.product)


# --- work under way


def _working(work: Work, tower: Tower) -> float:
    """A turn's backward pass: what it needs, and the gradients of it."""
    inside = _inside(work, tower, scores=False)
    inside = inside if work.model.remat in BLOCKS else 0.0
    largest = 0.0
    for each in work.of(tower.name):
        if each.name == "query":
            largest = max(largest, working_scores(work, tower, each))
        if each.name == "up":
            rows = _rows_of(work, tower, each)
            largest = max(largest, 2.0 * work.item * rows * work.cuts.used(each) / work.model.embed_dim)
    weights = _weights(work, tower) if work.cuts.rules.zero == 3 else 0.0
    return inside + largest + weights


def _fresh(work: Work) -> float:
    """Gradients of a microbatch before they are added to their sum or cut."""
    zero = work.cuts.rules.zero
    if work.microbatches == 1 and zero != 2:
        return 0.0
    size = work.cuts.stored if zero == 3 else work.cuts.used
    return float(work.item * sum(work.cuts.layers(each) * size(each) for each in work.parameters))


def _logits(work: Work) -> float:
    """Logits of a part of the tokens and their gradient, the table they are made with, and the sum of its gradients."""
    table = max(
        (each for each in work.of("") if each.product and (each.name == "table" or each.module == "head")),
        key=lambda each: each.module == "head",
    )
    used = work.cuts.used(table)
    logits = min(FP32 * work.last.tokens * used / work.model.embed_dim, LOGITS_BYTES_ELSEWHERE)
    weights = work.item * used if work.cuts.rules.zero == 3 else 0
    return logits * (1 + work.item / FP32) + FP32 * used + weights + _whole(work, work.last)
