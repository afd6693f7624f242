"""How well a model predicts whole texts: per token, per byte, and per word of the original text."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pathways_lm.errors import DataError
from pathways_lm.evaluate.scoring import rolling
from pathways_lm.evaluate.trained import Trained


class Likelihood(NamedTuple):
    """Of one text. Add up before dividing."""

    log_likelihood: float
    """Nats, over all tokens."""
    tokens: int
    words: int
    """Of the original text, between runs of white space, as lm-evaluation-harness counts them."""
    bytes: int
    """Of the original text, in UTF-8."""


def likelihoods(
    trained: Trained, texts: Sequence[str], originals: Sequence[str] | None = None, stride: int | None = None
) -> list[Likelihood]:
    """Of each text by itself, whatever its length (`scoring.rolling`). A text's end is not scored.

    Args:
      originals: what words and bytes are counted in, where `texts` are not the data set's own form of them:
        `detokenized`.

    Raises DataError for a text without tokens, and for a stride that is not possible.
    """
    windows, owners = [], []
    counts = []
    for number, text in enumerate(texts):
        ids = trained.vocabulary.encode(text)
        if not ids:
            raise DataError("there is no token to score")
        own = rolling(trained.form, ids, trained.context, stride)
        windows += own
        owners += [number] * len(own)
        counts.append(len(ids))
    sums = [0.0] * len(texts)
    for owner, scored in zip(owners, trained.log_likelihoods(windows), strict=True):
        sums[owner] += scored.total
    counted = texts if originals is None else originals
    return [
        Likelihood(log_likelihood, tokens, count_words(text), len(text.encode()))
        for log_likelihood, tokens, text in zip(sums, counts, counted, strict=True)
    ]


def perplexities(found: Iterable[Likelihood]) -> dict[str, float]:
    """`loss` (nats a token), `perplexity`, `word_perplexity`, `byte_perplexity` and `bits_per_byte` of all texts.

    Perplexity per original word is exp(-log-likelihood / words), whatever tokens the vocabulary makes of them:
    comparable between vocabularies, as perplexity per token is not. The last three have the names and definitions of
    lm-evaluation-harness.
    """
    found = list(found)
    nll = -sum(each.log_likelihood for each in found)
    tokens, words, size = (sum(count) for count in zip(*((f.tokens, f.words, f.bytes) for f in found), strict=True))
    return {
        "loss": nll / tokens,
        "perplexity": _exp(nll / tokens),
        "word_perplexity": _exp(nll / words),
        "byte_perplexity": _exp(nll / size),
        "bits_per_byte": nll / size / math.log(2),
    }


def adjusted_perplexity(found: Iterable[Likelihood], originals: Sequence[str]) -> float:
    """WikiText-103's perplexity as Megatron-LM prints it (arXiv:1909.08053, appendix E.1): exp(-log-likelihood / T_o).

    T_o are the tokens of the data set's own form, in which line ends stand between spaces and count as words do. They
    are more than the words of `Likelihood`, and the figure is lower than `word_perplexity`.
    """
    tokens = sum(len(text.strip().split(" ")) for text in originals)
    return _exp(-sum(each.log_likelihood for each in found) / tokens)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def count_words(text: str) -> int:
    """Parts between runs of white space, and one more at an end that is white."""
    return len(re.split(r"\s+", text))


def detokenized(text: str) -> str:
    """WikiText as it was written, before the data set's makers set its words and marks apart.

    `" @-@ "` stands for a hyphen within a word, marks have a space before them, brackets and quotes on both sides.
    No model has read text like that; Megatron-LM scores the text that is put together again, and divides by the words
    of the one apart. The rules are those of its `wikitext_detokenizer`, in its order.
    """
    text = text.replace("s '", "s'")
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for opening, closing in ("()", "[]", "{}", '""', "''"):
        inside = rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"
        text = re.sub(inside, rf"{opening}\1{closing}", text)
    for equals in ("= = = =", "= = =", "= ="):  # headings
        text = text.replace(equals, equals.replace(" ", ""))
    rules = ((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"))
    for apart, together in rules:
        text = text.replace(apart, together)
    return text
