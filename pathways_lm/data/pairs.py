"""Tasks of inputs and targets made from what every machine has: Python, its library, and babel's locale data.

Each gives the same list on every machine with the same Python and babel. An example's name is its inputs, so that
`sources.split` never puts one of them on both sides; of several with the same inputs, the first stays.
"""

import ast
import functools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from pathways_lm.data.examples import Document, Pair
from pathways_lm.data.standard_library import python_docs, python_stdlib
from pathways_lm.errors import DataError

_MOST_TARGET_CHARACTERS, _MOST_INPUT_CHARACTERS = 200, 400

# The languages that most people who use computers read, by CLDR's codes.
_LANGUAGES = (
    *("ar", "bg", "bn", "ca", "cs", "da", "de", "el", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it"),
    *("ja", "ko", "lt", "lv", "ms", "nb", "nl", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "sw", "ta", "th", "tr"),
    *("uk", "ur", "vi", "zh"),
)

_SEED = 20
_ARITHMETIC, _SORTING, _MISSPELLINGS = 20_000, 20_000, 3
_WORD = re.compile(r"[a-z]{5,14}")


def _pairs(examples: Iterable[tuple[str, str]]) -> list[Pair]:
    targets: dict[str, str] = {}
    for inputs, target in examples:
        targets.setdefault(inputs, target)
    return [Pair(inputs, inputs, target) for inputs, target in targets.items()]


def docstring_to_name() -> list[Pair]:
    """The first paragraph of a function's docstring to its name."""
    found = ((f"name the function: {summary}", function.name) for function, summary in _documented())
    return _pairs(found)


def signature_to_docstring() -> list[Pair]:
    """A function's name and parameters to the first paragraph of its docstring."""
    found = ((f"describe: def {f.name}({ast.unparse(f.args)})", summary) for f, summary in _documented())
    return _pairs((inputs, summary) for inputs, summary in found if len(inputs) <= _MOST_INPUT_CHARACTERS)


@functools.cache
def _documented() -> list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions of the standard library that are not private, with the first paragraph of their docstring."""
    found = []
    for module in python_stdlib():
        for node in ast.walk(_parsed(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                summary = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 10 <= len(summary) <= _MOST_TARGET_CHARACTERS:
                    found.append((node, summary))
    return found


def _parsed(module: Document) -> ast.AST:
    try:
        return ast.parse(module.text)
    except SyntaxError:  # templates that tools of the library fill in
        return ast.Module([], [])


def country_names() -> list[Pair]:
    """The English name of a country or region to its name in another language, by CLDR."""
    return _pairs(_translations("territories", re.compile("[A-Z]{2}")))


def language_names() -> list[Pair]:
    """The English name of a language to its name in another language, by CLDR."""
    return _pairs(_translations("languages", re.compile("[a-z]{2,3}")))


def _translations(kind: str, codes: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """English to each language, of the names that the other language has."""
    try:
        from babel import Locale  # late: only these tasks need it
    except ImportError as error:
        raise DataError("country_names and language_names need the package babel: pip install babel") from error
    english = Locale("en")
    names = getattr(english, kind)
    for language in _LANGUAGES:
        theirs = getattr(Locale(language), kind)
        for code in sorted(names):
            if codes.fullmatch(code) and code in theirs:
                yield f"translate English to {english.languages[language]}: {names[code]}", theirs[code]


def spelling() -> list[Pair]:
    """A word of Python's documentation with a slip in it to the word."""
    words = sorted({word for topic in python_docs() for word in _WORD.findall(topic.text.lower())})
    known, draw = set(words), random.Random(_SEED)
    slips = ((_misspelt(word, draw), word) for word in words for _ in range(_MISSPELLINGS))
    return _pairs((f"spell: {slip}", word) for slip, word in slips if slip not in known)


def _misspelt(word: str, draw: random.Random) -> str:
    """One letter left out, doubled, swapped with the next, or another."""
    place = draw.randrange(1, len(word) - 1)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    other = "abcdefghijklmnopqrstuvwxyz"[draw.randrange(26)]
    slips = (
        before + after,
        before + 2 * letter + after,
        before + after[0] + letter + after[1:],
        before + other + after,
    )
    return slips[draw.randrange(len(slips))]


def arithmetic() -> list[Pair]:
    """Sums, differences and products to their values."""
    draw = random.Random(_SEED)
    return _pairs(_calculation(draw) for _ in range(_ARITHMETIC))


def _calculation(draw: random.Random) -> tuple[str, str]:
    operator = "+-*"[draw.randrange(3)]
    digits = (1, 2) if operator == "*" else (1, 2, 3, 4)
    a, b = (draw.randrange(10 ** digits[draw.randrange(len(digits))]) for _ in range(2))
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return f"calculate: {a} {operator} {b}", str(value)


def sorting() -> list[Pair]:
    """A few numbers, or words of Python's documentation, to the same in order."""
    words = sorted({word for topic in python_docs() for word in _WORD.findall(topic.text.lower())})
    draw = random.Random(_SEED)
    return _pairs(_unsorted(words, draw) for _ in range(_SORTING))


def _unsorted(words: list[str], draw: random.Random) -> tuple[str, str]:
    size = draw.randrange(3, 9)
    if draw.randrange(2):
        numbers = [draw.randrange(100) for _ in range(size)]
        return f"sort: {' '.join(map(str, numbers))}", " ".join(map(str, sorted(numbers)))
    chosen = [words[draw.randrange(len(words))] for _ in range(size)]
    return f"sort: {' '.join(chosen)}", " ".join(sorted(chosen))


TASKS: Mapping[str, Callable[[], list[Pair]]] = {
    "docstring_to_name": docstring_to_name,
    "signature_to_docstring": signature_to_docstring,
    "country_names": country_names,
    "language_names": language_names,
    "spelling": spelling,
    "arithmetic": arithmetic,
    "sorting": sorting,
}
METRICS: Mapping[str, tuple[str, ...]] = {
    "docstring_to_name": ("accuracy",),
    "signature_to_docstring": ("bleu", "rouge", "accuracy"),
    "country_names": ("accuracy", "bleu"),
    "language_names": ("accuracy", "bleu"),
    "spelling": ("accuracy",),
    "arithmetic": ("accuracy",),
    "sorting": ("accuracy", "edit_distance"),
}
"""Of `t5.evaluation.metrics`, by task."""
