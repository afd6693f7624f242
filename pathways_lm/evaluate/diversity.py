"""How much written texts repeat: themselves, and one another."""

from collections.abc import Callable, Sequence

from pathways_lm.errors import DataError

Words = Sequence[str]


def words(text: str) -> Words:
    """Between white space. Megatron-CNTRL does not say how it parts words; give another function where it matters."""
    return text.split()


def ngrams(text: Words, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order; none of a shorter text."""
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def distinct(texts: Sequence[str], n: int = 4, part: Callable[[str], Words] = words) -> float:
    """Different n-grams over all n-grams of all texts, in percent (Megatron-CNTRL, arXiv:2010.00840, section 3.5;
    Li et al., arXiv:1510.03055, of single words and pairs).

    Raises DataError where no text has n words.
    """
    found = [ngram for text in texts for ngram in ngrams(part(text), n)]
    if not found:
        raise DataError(f"no text has {n} words")
    return 100 * len(set(found)) / len(found)


def repetition(texts: Sequence[str], n: int = 4, part: Callable[[str], Words] = words) -> float:
    """The share of texts that say some n-gram twice or more, in percent (Megatron-CNTRL, section 3.5).

    Raises DataError where there is no text.
    """
    if not texts:
        raise DataError("there is no text")
    every = [ngrams(part(text), n) for text in texts]
    return 100 * sum(len(set(found)) < len(found) for found in every) / len(texts)


def self_bleu(texts: Sequence[str], n: int = 4, part: Callable[[str], Words] = words) -> float:
    """The mean BLEU of each text with all others as its references, in percent: how alike they are.

    Texygen's (arXiv:1802.01886, section 3.2): n-grams up to `n` of equal weight, counts of zero smoothed by NLTK's
    first method. Its work grows with the square of the number of texts. Raises DataError for fewer than two.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # late: of the extra [eval]

    if len(texts) < 2:
        raise DataError("self-BLEU needs two texts or more")
    parted, smooth = [list(part(text)) for text in texts], SmoothingFunction().method1
    weights = (1 / n,) * n
    scores = [
        sentence_bleu(parted[:number] + parted[number + 1 :], text, weights, smoothing_function=smooth)
        for number, text in enumerate(parted)
    ]
    return 100 * float(sum(scores)) / len(scores)
