"""What a device computes in a step, by formulas: matrix products, and what else moves through its memory.

A product costs 2 for each multiplication with addition. One of the forward pass has two in the backward pass, which
together with what is computed again makes 6 N + 12 L H Q T and the rest of PaLM's appendix B.
"""

import math
from collections.abc import Iterable

from pathways_lm.config import ModelConfig
from pathways_lm.errors import ConfigError
from pathways_lm.layers.mlp import GATES
from pathways_lm.layers.moe.router import capacity
from pathways_lm.plan.analytic.attention import attention, attention_gradients, weights_again
from pathways_lm.plan.analytic.parameters import Cuts, Parameter, moments
from pathways_lm.plan.analytic.work import BLOCKS, FP32, Tower, Work
from pathways_lm.plan.program_arithmetic import Arithmetic

# --- layers


def forward(work: Work, tower: Tower) -> list[Arithmetic]:
    """One turn of the loop over layers."""
    products = [_product(work, each, _rows(work, tower, each)) for each in _kernels(work.of(tower.name))]
    for module in _attentions(work.of(tower.name)):
        products += attention(work, tower, module)
    if work.model.moe.num_experts and work.model.moe.dispatch == "einsum":
        products += _one_hot(work, tower, (1, 1))
    return [*products, *_passes(work, tower)]


def recomputed(work: Work, tower: Tower) -> list[Arithmetic]:
    """What of a turn the backward pass computes again."""
    again = []
    if work.stages > 1:
        # A pipeline's stages keep what enters them, whatever the layers keep.
        again += forward(work, tower)
    if work.model.remat == "attention":
        # Others keep no weights, whatever `remat` says.
        for module in _attentions(work.of(tower.name)):
            if work.attentions["cross" if module.module == "cross" else tower.name].name != "plain":
                continue
            again += weights_again(work, tower, module)
    if work.model.remat in BLOCKS:
        kernels = [each for each in _kernels(work.of(tower.name)) if not _is_last(work, tower, each)]
        again += [_product(work, each, _rows(work, tower, each)) for each in kernels]
        for module in _attentions(work.of(tower.name)):
            again += attention(work, tower, module)
        if work.model.moe.num_experts and work.model.moe.dispatch == "einsum":
            again += _one_hot(work, tower, (1, 0))
        again += _passes(work, tower)
    return again


def backward(work: Work, tower: Tower) -> list[Arithmetic]:
    """The gradients of one turn, without what is computed again."""
    products = []
    for each in _kernels(work.of(tower.name)):
        products += _gradients(work, each, _rows(work, tower, each))
    for module in _attentions(work.of(tower.name)):
        products += attention_gradients(work, tower, module)
    if work.model.moe.num_experts and work.model.moe.dispatch == "einsum":
        # Which places tokens get has no gradient.
        products += _one_hot(work, tower, (1, 2))
    return [*products, *(Arithmetic(0.0, 2 * one.memory_bytes, one.scope) for one in _passes(work, tower))]


def _kernels(found: Iterable[Parameter]) -> list[Parameter]:
    return [each for each in found if each.product and each.name != "table"]


def _attentions(found: Iterable[Parameter]) -> list[Parameter]:
    """The queries' kernels, one of each attention."""
    return [each for each in found if each.name == "query"]


def _rows(work: Work, tower: Tower, kernel: Parameter) -> int:
    """How many rows a device multiplies with a kernel; of experts all of its own together, filled or not."""
    if kernel.is_expert:
        return expert_places(work, tower)
    if kernel.module == "cross" and kernel.name in ("key", "value"):
        return tower.rows * tower.memory
    return tower.tokens


def expert_places(work: Work, tower: Tower) -> int:
    """Rows that each of a device's experts multiplies in a microbatch."""
    moe, cuts = work.model.moe, work.cuts
    tokens = tower.rows * cuts.parts["batch"] * tower.seen
    if moe.dispatch == "dropless":
        return tokens * moe.top_k // moe.num_experts // cuts.parts["group"]
    size = group_tokens(work, tower)
    return tokens // size * capacity(moe, size, training=True) // cuts.parts["group"]


def group_tokens(work: Work, tower: Tower) -> int:
    """Tokens that compete for places, as `layers.moe.layer` takes them."""
    bound = work.model.moe.group_tokens or tower.seen
    if bound < tower.seen:
        return _largest_divisor(tower.seen, bound)
    return tower.seen * _largest_divisor(tower.rows * work.cuts.parts["batch"], bound // tower.seen)


def check_groups(work: Work, tower: Tower) -> None:
    """Raises ConfigError where there are not groups enough for all parts of the batch."""
    parts = work.cuts.parts["batch"]
    size = group_tokens(work, tower)
    if tower.rows * parts * tower.seen // size % parts:
        raise ConfigError(
            f"model.moe.group_tokens makes groups of {size} tokens, of which {parts} parts of the batch cannot have "
            f"as many each: at most {tower.rows * tower.seen} tokens make groups enough"
        )


def _largest_divisor(of: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, min(of, at_most) + 1) if of % divisor == 0)


def _is_last(work: Work, tower: Tower, kernel: Parameter) -> bool:
    """Whether a kernel's output is only added to what leaves the turn, so that no gradient needs it."""
    block = work.model.block
    if block == "post_norm" or kernel.name not in ("down", "out") or kernel.is_expert:
        return False
    if block == "parallel":
        return True
    # Blocks and the branches of each follow one another; only the last one's output is nobody's input.
    outputs = [each for each in _kernels(work.of(tower.name)) if each.name == "down"]
    blocks = sorted({each.path.split("/")[-3] for each in outputs})
    branches = [each for each in outputs if each.path.split("/")[-3] == blocks[-1]]
    extra = [each for each in branches if each.module == "extra"]
    return kernel == (extra or branches)[-1]


def _product(work: Work, kernel: Parameter, rows: int) -> Arithmetic:
    flops, given, taken, weights = _ends(work, kernel, rows)
    return Arithmetic(flops, given + weights + taken, kernel.path)


def _gradients(work: Work, kernel: Parameter, rows: int) -> list[Arithmetic]:
    """Of what enters and of the kernel."""
    flops, given, taken, weights = _ends(work, kernel, rows)
    return [Arithmetic(flops, given + weights + taken, kernel.path)] * 2


def _ends(work: Work, kernel: Parameter, rows: int) -> tuple[float, float, float, float]:
    """FLOPs, and the bytes of a product's input, output and kernel."""
    sizes = work.cuts.sizes(kernel)
    experts = sizes[0] if kernel.is_expert else 1
    inner = experts
    for size in sizes[kernel.is_expert : kernel.is_expert + kernel.contracted]:
        inner *= size
    used = work.cuts.used(kernel)
    outer = experts * used // inner
    item = kernel.item_bytes(work.item)
    return 2.0 * rows * used, item * rows * inner, item * rows * outer, item * used


def _one_hot(work: Work, tower: Tower, times: tuple[int, int]) -> list[Arithmetic]:
    """Products with the masks that send tokens to places and back, of all layers with experts in a turn."""
    moe, size = work.model.moe, group_tokens(work, tower)
    places = capacity(moe, size, training=True) * moe.num_experts
    mask = float(tower.tokens * places)
    layers = sum(each.name == "router" for each in work.of(tower.name))
    moved = work.item * (mask + (tower.tokens + tower.tokens // size * places) * work.model.embed_dim)
    return [Arithmetic(2 * mask * work.model.embed_dim, moved, "one-hot")] * (layers * sum(times))


def _passes(work: Work, tower: Tower) -> list[Arithmetic]:
    """What moves through memory besides the ends of products, forward."""
    item, cuts = work.item, work.cuts
    moved = 0.0
    stream = item * tower.tokens * work.model.embed_dim / (cuts.parts["residual"] * stream_parts(cuts))
    for each in work.of(tower.name):
        if each.name == "scale":
            # A norm reads the stream and writes it whole; the branch's output is added.
            moved += 2 * stream + item * tower.tokens * work.model.embed_dim
        if each.name == "down":
            # The activation reads what one or two kernels gave and writes one.
            kernels = 2 if _is_gated(work.model, each) else 1
            moved += (kernels + 1) * item * _rows(work, tower, each) * cuts.used(each) / work.model.embed_dim
        if each.name == "query":
            heads, size = cuts.sizes(each)[1:]
            moved += 2 * item * tower.tokens * heads * size
    return [Arithmetic(0.0, moved, "passes")]


def stream_parts(cuts: Cuts) -> int:
    """Into how many parts lengths are cut between blocks besides those within."""
    return cuts.parts["residual_length"] // cuts.parts["length"]


def _is_gated(model: ModelConfig, down: Parameter) -> bool:
    return ((model.moe.activation if down.is_expert else "") or model.activation) in GATES


# --- around the layers


def ends(work: Work) -> list[Arithmetic]:
    """Embeddings and logits of a microbatch, with their gradients."""
    model, tower = work.model, work.last
    done: list[Arithmetic] = []
    heads = [each for each in work.of("") if each.product and (each.module == "head" or each.name == "table")]
    table = next((each for each in heads if each.module == "head"), heads[0])
    rows = work.cuts.used(table) // model.embed_dim
    logits = float(tower.tokens * rows)
    stream = work.item * tower.tokens * model.embed_dim
    weights = work.item * work.cuts.used(table)
    flops = 2 * logits * model.embed_dim
    done += [Arithmetic(flops, stream + weights + work.item * logits, "logits")] * 3
    # The sum of exponentials, the target's logit, and the gradient of both.
    done.append(Arithmetic(0.0, (1 if work.fused else 4) * work.item * logits, "loss"))
    for other in _kernels(work.of("")):
        if other is not table and other.module not in ("pooler", "order"):
            done += [_product(work, other, tower.tokens), *_gradients(work, other, tower.tokens)]
    for each in work.towers:
        done.append(Arithmetic(0.0, 6 * work.item * each.tokens * model.embed_dim, "embedding"))
    # The gradient of a lookup is the whole table.
    done.append(Arithmetic(0.0, 2 * weights, "embedding"))
    return done


def update(work: Work) -> list[Arithmetic]:
    """Once a step: parameters cast, the optimizer."""
    stored = sum(work.cuts.layers(each) * work.cuts.stored(each) for each in work.parameters)
    held = sum(work.cuts.layers(each) * moment_bytes(work, each) for each in work.parameters)
    # The optimizer reads and writes parameters and moments, and reads gradients twice: their norm comes first.
    return [Arithmetic(0.0, (4 * FP32 + FP32 + work.item) * stored + 2 * held, "optimizer")]


def moment_bytes(work: Work, parameter: Parameter) -> float:
    """Of the optimizer's moments of one layer of a parameter, on the device that has its part of it."""
    return sum(
        item * math.prod(work.cuts.part(size, name) for size, name in zip(sizes, parameter.dims, strict=True))
        for sizes, item in moments(work.model, work.experiment.optimizer)[parameter.path]
    )


def gradients(work: Work) -> list[Arithmetic]:
    """Of each microbatch: stacks of gradients begin as zeros, and are made fp32 to be added over devices or up."""
    zero = work.cuts.rules.zero
    size = work.cuts.stored if zero == 3 else work.cuts.used
    fresh = sum(work.cuts.layers(each) * size(each) for each in work.parameters)
    summed = sum(work.cuts.layers(each) * work.cuts.stored(each) for each in work.parameters) if zero >= 2 else fresh
    moved = work.item * fresh
    if zero == 2:
        moved += (work.item + FP32) * fresh
    if work.microbatches > 1:
        moved += (work.item + 2 * FP32) * summed
    return [Arithmetic(0.0, moved, "sums of gradients")]
