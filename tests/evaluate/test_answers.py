"""Answers to held-out pairs: what is asked, and figures that are t5's own."""

import subprocess
import sys

import pytest
from t5.evaluation import metrics as t5

from pathways_lm.evaluate.answers import Answers, metrics_of, score

# Of country_names, which has BLEU too; of sorting; and of a file.
QUESTIONS = {
    "country_names": [("a", "the first of the names"), ("b", "the second of the names"), ("c", "another")],
    "sorting": [("d", "1 2"), ("e", "3 4")],
    "files": [("f", "x")],
}
WRITTEN = {"a": "the first of the names", "b": "the last of the names", "c": "", "d": "1 2", "e": "3 4", "f": "y"}


def test_figures_are_those_of_t5():
    calls = []

    def answer(params, prompts):
        calls.append((params, list(prompts)))
        return [WRITTEN[prompt] for prompt in prompts]

    answers = Answers(QUESTIONS, answer)
    figures = answers({"some": "parameters"})
    assert calls == [({"some": "parameters"}, list("abcdef"))]
    targets = {task: [target for _, target in pairs] for task, pairs in QUESTIONS.items()}
    written = {task: [WRITTEN[inputs] for inputs, _ in pairs] for task, pairs in QUESTIONS.items()}
    expected = {task: dict(t5.accuracy(targets[task], written[task])) for task in QUESTIONS}
    expected["country_names"] |= t5.bleu(targets["country_names"], written["country_names"])
    assert figures["tasks"] == expected
    assert [expected[task]["accuracy"] for task in QUESTIONS] == pytest.approx([100 / 3, 100, 0])
    assert figures["accuracy"] == pytest.approx((100 / 3 + 100 + 0) / 3)
    assert figures["bleu"] == expected["country_names"]["bleu"]
    assert answers.samples == [("a", WRITTEN["a"]), ("d", "1 2"), ("f", "y")]


def test_a_single_task_has_its_figures_alone():
    assert Answers({"sorting": QUESTIONS["sorting"]}, lambda _, prompts: ["1 2", "4 3"])({}) == {"accuracy": 50.0}


def test_spaces_and_case_count():
    assert score("sorting", ["1 2", "a", "b", ""], ["1  2", "A", "b ", ""]) == {"accuracy": 25.0}


def test_names_of_metrics():
    assert metrics_of(("sorting", "files")) == {"accuracy"}
    assert metrics_of(("sorting", "language_names")) == {"accuracy", "bleu"}


def test_metrics_are_silent():
    """In a process of their own: tensorflow, which comes with them, writes nothing to the terminal."""
    code = "from pathways_lm.data.metrics import accuracy; print(accuracy(['a', 'b'], ['a', 'c']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{'accuracy': 50.0}\n", "")
