"""The tasks of pairs: each answer checked by other means, and none on both sides of the split."""

import ast
import datetime
import difflib
import inspect
import json
import re
import subprocess
import sys
import textwrap

import pytest

from pathways_lm.data import pairs, sources


@pytest.fixture(scope="module", params=list(pairs.TASKS))
def task(request):
    return request.param, pairs.TASKS[request.param]()


def test_no_example_is_on_both_sides(task):
    _, examples = task
    assert len(examples) >= 2_000
    train, validation = sources.split(examples, 0.02)
    assert len(train) + len(validation) == len(examples)
    assert not {pair.inputs for pair in train} & {pair.inputs for pair in validation}
    assert 0.01 < len(validation) / len(examples) < 0.03
    assert len({pair.inputs for pair in examples}) == len(examples)
    assert all(pair.inputs and pair.targets and pair.name == pair.inputs for pair in examples)


def test_the_same_in_another_process():
    """Whatever the seed of Python's hashes."""
    program = (
        "import hashlib, json; from pathways_lm.data import pairs;"
        "print(json.dumps({n: hashlib.sha256(repr(make()).encode()).hexdigest() for n, make in pairs.TASKS.items()}))"
    )
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}, cwd="."
            ).stdout
        )
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]


def test_arithmetic():
    for pair in pairs.arithmetic():
        sum_ = pair.inputs.removeprefix("calculate: ")
        assert pair.targets == str(eval(sum_, {}))


def test_sorting():
    for pair in pairs.sorting():
        items = pair.inputs.removeprefix("sort: ").split()
        numbers = items[0].isdigit()
        assert pair.targets.split() == sorted(items, key=int if numbers else str)


def test_spelling():
    """One slip: of letters, all but one or two are where they were."""
    for pair in pairs.spelling():
        slip = pair.inputs.removeprefix("spell: ")
        assert slip != pair.targets and abs(len(slip) - len(pair.targets)) <= 1
        matcher = difflib.SequenceMatcher(None, slip, pair.targets, autojunk=False)
        kept = sum(block.size for block in matcher.get_matching_blocks())
        assert kept >= len(pair.targets) - 2


VALUES = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50},
    **{"sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90},
}


def value_of(words: str) -> int:
    """What a number's English name says, read from left to right."""
    whole = part = 0
    for word in words.replace("-", " ").replace(" and ", " ").split():
        if word == "thousand":
            whole, part = part * 1000, 0
        elif word == "hundred":
            part *= 100
        else:
            part += VALUES[word]
    return whole + part


def test_numbers_in_words():
    found = {pair.inputs.removeprefix("in words: "): pair.targets for pair in pairs.numbers_in_words()}
    assert all(value_of(words) == int(digits) for digits, words in found.items())
    assert len(set(found.values())) == len(found)
    by_hand = {0: "zero", 100: "one hundred", 110: "one hundred and ten", 2_005: "two thousand and five"}
    by_hand |= {40_014: "forty thousand and fourteen", 900_721: "nine hundred thousand seven hundred and twenty-one"}
    assert {number: pairs.in_words(number) for number in by_hand} == by_hand


def test_dates():
    """The weekday, where it is told in English, is that of the day; the numbers of day and year stand in the text, and
    that of the month where it has no name."""
    found = {pair.inputs.removeprefix("date: "): pair.targets for pair in pairs.dates()}
    for text, iso in found.items():
        day = datetime.date.fromisoformat(iso)
        assert 1900 <= day.year <= 2099
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if re.fullmatch(r"\d\d\.\d\d\.\d{4}", text):
            assert numbers == [day.day, day.month, day.year]
        else:
            assert sorted(numbers) == [day.day, day.year]
        assert not (weekday := re.match(r"(\w+day), [A-Z]", text)) or weekday[1] == f"{day:%A}"
    known = {"6. April 1954": "1954-04-06", "sábado, 28 de julio de 1928": "1928-07-28", "28 maart 1965": "1965-03-28"}
    assert {text: found[text] for text in known} == known


def test_names_by_hand():
    countries = {pair.inputs: pair.targets for pair in pairs.country_names()}
    assert countries["translate English to German: France"] == "Frankreich"
    assert countries["translate English to Spanish: Germany"] == "Alemania"
    languages = {pair.inputs: pair.targets for pair in pairs.language_names()}
    assert languages["translate English to French: German"] == "allemand"
    assert languages["translate English to Italian: Japanese"] == "giapponese"


def test_functions_by_hand():
    """`inspect` says the same of a function that it can import."""
    names = {pair.inputs: pair.targets for pair in pairs.docstring_to_name()}
    summary = inspect.getdoc(textwrap.dedent).split("\n\n")[0]
    assert names[f"name the function: {' '.join(summary.split())}"] == "dedent"
    described = {pair.inputs: pair.targets for pair in pairs.signature_to_docstring()}
    source = ast.parse(inspect.getsource(textwrap.shorten)).body[0]
    summary = " ".join(inspect.getdoc(textwrap.shorten).split("\n\n")[0].split())
    assert described[f"describe: def shorten({ast.unparse(source.args)})"] == summary


def test_metrics_are_named_for_every_task():
    assert set(pairs.METRICS) == set(pairs.TASKS)
