"""How much of each task is learned from, and how that follows the tasks' losses.

Raffel et al. (arXiv:1910.10683, section 3.5.2): proportional with a limit and a temperature. UniMax (arXiv:2304.09151,
algorithm 1): alike, with a cap on epochs. DoReMi (arXiv:2305.10429, algorithm 1): by excess loss.
"""

import math
from collections.abc import Mapping

from pathways_lm.config import MixingConfig
from pathways_lm.errors import ConfigError, nearest

Shares = dict[str, float]


def first_shares(config: MixingConfig, sizes: Mapping[str, float], sequences: Mapping[str, int], total: int) -> Shares:
    """The shares that a run begins with. They add up to 1.

    Args:
      sizes: what each task holds, in bytes of text.
      sequences: the same in packed sequences.
      total: sequences that the whole run reads.

    Raises:
      ConfigError: weights of no known task, negative ones, or none above 0.
    """
    if config.weights:
        return _normal(parse(config.weights, "mixing.weights", sizes))
    if config.rule == "fixed":
        raise ConfigError("mixing.rule='fixed' needs mixing.weights, as " + ",".join(f"{task}=1" for task in sizes))
    if config.rule == "unimax":
        return unimax(sequences, config.max_epochs, total)
    return proportional(sizes, sequences, config.limit, config.temperature)


def proportional(sizes: Mapping[str, float], sequences: Mapping[str, int], limit: int, temperature: float) -> Shares:
    """Sizes to the power of 1 / temperature, none of more than `limit` sequences (0: any)."""
    limited = {
        task: size * min(1.0, limit / sequences[task]) if limit and sequences[task] else size
        for task, size in sizes.items()
    }
    return _normal({task: size ** (1 / temperature) for task, size in limited.items()})


def unimax(sequences: Mapping[str, int], max_epochs: float, total: int) -> Shares:
    """As alike as the cap on epochs lets them be: what a small task cannot take goes to the larger ones, alike.

    Where the cap would hold all tasks below `total`, each is seen equally often.
    """
    left, shares = float(total), {}
    for count, task in enumerate(sorted(sequences, key=sequences.__getitem__)):
        alike = left / (len(sequences) - count)
        shares[task] = min(alike, sequences[task] * max_epochs)
        left -= shares[task]
    return _normal({task: shares[task] for task in sequences})


def excess_loss(shares: Shares, losses: Shares, references: Shares, rate: float, smoothing: float) -> Shares:
    """DoReMi's update: shares times exp(rate x excess), mixed with equal shares."""
    # Tasks not yet seen in an interval stay where they are.
    excess = {task: max(losses[task] - references.get(task, 0.0), 0.0) if task in losses else 0.0 for task in shares}
    highest = max(excess.values())
    return _smooth(
        {task: share * math.exp(rate * (excess[task] - highest)) for task, share in shares.items()}, smoothing
    )


def loss_ratio(base: Shares, losses: Shares, references: Shares, rate: float, smoothing: float) -> Shares:
    """The first shares times (loss / reference)^rate, mixed with equal shares: most for what has come down least."""
    ratios = {task: losses[task] / references[task] if task in losses else 1.0 for task in base}
    return _smooth({task: share * ratios[task] ** rate for task, share in base.items()}, smoothing)


def rounded(shares: Shares) -> Shares:
    """To two digits, a thousandth at least where there is a share, and then to a sum of 1.

    The last digits of losses differ between meshes. What a step reads should not, so they are kept from deciding it,
    unless a share happens to lie on the border between two values.
    """
    return _normal(
        {task: float(f"{max(share, 1e-3):.2g}") if share else 0.0 for task, share in _normal(shares).items()}
    )


def parse(text: str, field: str, tasks: Mapping[str, object]) -> Shares:
    """`task=number,…` of known tasks, 0 for those not named. Raises ConfigError naming the task or number."""
    found = dict.fromkeys(tasks, 0.0)
    for part in text.split(","):
        task, equals, number = (each.strip() for each in part.partition("="))
        if not equals:
            raise ConfigError(f"{field}='{text}' must read task=number,…")
        if task not in found:
            raise ConfigError(f"{field} has no task '{task}'{nearest(task, tasks)}")
        try:
            found[task] = float(number)
        except ValueError:
            raise ConfigError(f"{field}: '{number}' of task '{task}' is no number") from None
        if not (0 <= found[task] < math.inf):
            raise ConfigError(f"{field}: {task}={number} must be 0 or above")
    if not any(found.values()):
        raise ConfigError(f"{field}='{text}' are all 0: nothing would be learned from")
    return found


def _smooth(shares: Shares, smoothing: float) -> Shares:
    """Mixed with equal shares of all tasks that have one."""
    alike = smoothing / sum(share > 0 for share in shares.values())
    return {task: (1 - smoothing) * share + alike * (share > 0) for task, share in _normal(shares).items()}


def _normal(shares: Mapping[str, float]) -> Shares:
    total = sum(shares.values())
    return {task: share / total for task, share in shares.items()}
