"""LAMBADA: the last word of a passage (arXiv:1606.06031)."""

import math
from collections.abc import Sequence
from typing import Any

from pathways_lm.errors import DataError
from pathways_lm.evaluate.continuations import check_room, encode_pair
from pathways_lm.evaluate.trained import Trained


def last_word(passage: str, place: str) -> tuple[str, str]:
    """What stands before the last space, and the rest with that space before it.

    Raises DataError for a passage of a single word.
    """
    context, space, word = passage.rpartition(" ")
    if not space or not word or not context:
        raise DataError(f"{place}: a passage must be several words, and end in the last, not {passage[:40]!r}")
    return context, f" {word}"


def lambada(trained: Trained, passages: Sequence[tuple[str, str]], cut: bool = False) -> dict[str, Any]:
    """`accuracy` and `perplexity` of the last words, and how many there are.

    A word counts as right where greedy decoding would say it: where every one of its tokens is the likeliest (the
    strict form, of Megatron-LM, section 5.3, and of lm-evaluation-harness, whose `perplexity` is per word, too).

    Args:
      passages: each with its place.
      cut: leave out the left of passages that are longer than the context.

    Raises DataError, before anything is compiled, for a passage that is one word, or too long.
    """
    pairs = [last_word(passage, place) for place, passage in passages]
    windows = [encode_pair(trained.vocabulary, trained.form, *pair) for pair in pairs]
    windows = check_room(trained.form, windows, [place for place, _ in passages], trained.context, cut)
    scored = trained.log_likelihoods(windows)
    nll = -sum(found.total for found in scored) / len(scored)
    return {
        "accuracy": sum(found.all_greedy for found in scored) / len(scored),
        "perplexity": math.exp(nll) if nll < 700 else math.inf,
        "passages": len(scored),
    }
