"""Written answers against right ones, in SQuAD's normal form (arXiv:1606.05250, section 6.1)."""

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """In lower case, without ASCII punctuation and English articles, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def exact_match(written: str, right: str) -> float:
    """1 where both are the same in normal form, else 0."""
    return float(normalised(written) == normalised(right))


def f1(written: str, right: str) -> float:
    """The harmonic mean of precision and recall of words, 0 to 1. Of nothing, 1 where nothing was right."""
    ours, theirs = normalised(written).split(), normalised(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))
