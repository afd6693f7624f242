"""Prompts by hand, answers ranked by given likelihoods, and written ones counted by hand."""

import json

import numpy as np
import pytest

from pathways_lm.errors import DataError
from pathways_lm.evaluate.few_shot import Template, fill, prompts, read_template
from pathways_lm.evaluate.ranking import rank, write
from pathways_lm.evaluate.records import Record, json_lines
from pathways_lm.evaluate.scoring import Scored

NLI = Template(
    inputs="{premise}\nQuestion: {hypothesis} True or False?\nAnswer:", choices=("True", "False"), target="{label}"
)
RECORDS = [{"premise": f"P{i}.", "hypothesis": f"H{i}.", "label": i % 2} for i in range(6)]


def questions(template=NLI, records=RECORDS):
    return [fill(template, Record(f"x.jsonl, line {i + 1}", record)) for i, record in enumerate(records)]


def test_a_question():
    question = questions()[1]
    assert question.inputs == "P1.\nQuestion: H1. True or False?\nAnswer:"
    assert (question.choices, question.answers) == (("True", "False"), ("False",))
    assert question.solved == "P1.\nQuestion: H1. True or False?\nAnswer: False"


@pytest.mark.parametrize("label", [1, "1", "False"])
def test_an_answer_by_number_or_text(label):
    assert questions(records=[{**RECORDS[0], "label": label}])[0].answers == ("False",)


def test_choices_of_each_record_and_braces():
    template = Template(inputs="{{{q}}}", choices="{endings}", target="{gold}", delimiter="")
    question = fill(template, Record("x", {"q": 3, "endings": ["a {b}", "c", "d"], "gold": 2}))
    assert (question.inputs, question.choices, question.answers) == ("{3}", ("a {b}", "c", "d"), ("d",))
    assert question.solved == "{3}d"


def test_several_right_answers():
    template = Template(inputs="{q}", target="{answers}")
    assert fill(template, Record("x", {"q": "?", "answers": ["Nile", "the Nile"]})).answers == ("Nile", "the Nile")
    assert fill(template, Record("x", {"q": "?", "answers": "Nile"})).answers == ("Nile",)


def test_prompts():
    """Solved others before each question, none of them itself; alike for a seed, others for another."""
    template = Template(**{**NLI.__dict__, "description": "Say what follows.\n\n", "separator": "\n###\n"})
    asked = questions()
    drawn = prompts(template, asked, asked, 3, seed=5)
    for prompt, question in zip(drawn, asked, strict=True):
        assert prompt.startswith("Say what follows.\n\n")
        *solved, last = prompt.removeprefix("Say what follows.\n\n").split("\n###\n")
        assert last == question.inputs
        assert len(set(solved)) == 3 and set(solved) <= {other.solved for other in asked} - {question.solved}
    assert prompts(template, asked, asked, 3, seed=5) == drawn
    assert prompts(template, asked[:2], asked, 3, seed=5) == drawn[:2]
    assert prompts(template, asked, asked, 3, seed=6) != drawn
    assert prompts(NLI, asked, asked, 0, seed=5) == [question.inputs for question in asked]
    # Of 200 draws of one from five, each of the five comes about 40 times.
    many = prompts(NLI, asked[:1] * 200, asked, 1, seed=0)
    counts = [sum(other.solved in prompt for prompt in many) for other in asked]
    assert counts[0] == 0 and all(20 < count < 65 for count in counts[1:])


def test_too_small_a_pool():
    with pytest.raises(DataError, match=r"x.jsonl, line 1: there are only 5 other examples for --shots 6"):
        prompts(NLI, questions(), questions(), 6, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "{a}"}, "has no 'inputs'"),
        ({"inputs": "{a}"}, "has no 'target'"),
        ({"inputs": "{a}", "target": "{b}", "choises": []}, "has no key 'choises'; did you mean 'choices'?"),
        ({"inputs": "{a", "target": "{b}"}, "'inputs' has braces that do not match"),
        ({"inputs": "{a.b}", "target": "{b}"}, "'inputs' must name a field between braces"),
        ({"inputs": "{}", "target": "{b}"}, "'inputs' must name a field between braces"),
        ({"inputs": "{a}", "target": "{b:>3}"}, "'target' must name a field between braces"),
        ({"inputs": "{a}", "target": 3}, "'target' must be text, not 3"),
        ({"inputs": "{a}", "target": "{b}", "choices": "x {b}"}, "'choices' must be a list, or one field"),
        ({"inputs": "{a}", "target": "{b}", "choices": ["x"]}, "'choices' must be at least two"),
        ({"inputs": "{a}", "target": "{b}", "choices": [1, 2]}, "'choices' must be a list of texts, or text"),
        ({"inputs": "{a}", "target": "{b}", "unconditional": ""}, "'unconditional' is for templates with 'choices'"),
        ([], "must be a JSON object"),
    ],
)
def test_malformed_templates(tmp_path, values, message):
    path = tmp_path / "template.json"
    path.write_text(json.dumps(values, indent=1))
    with pytest.raises(DataError) as caught:
        read_template(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_from_its_file(tmp_path):
    path = tmp_path / "template.json"
    values = {"inputs": NLI.inputs, "choices": ["True", "False"], "target": "{label}"}
    path.write_text(json.dumps(values, indent=1))
    assert read_template(str(path)) == NLI
    path.write_text("{'inputs': 1}")
    with pytest.raises(DataError, match=r"template.json: not JSON"):
        read_template(str(path))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"premise": "p", "label": 0}, "line 1: has no field 'hypothesis'"),
        ({"premise": "p", "hypotesis": "h", "label": 0}, "did you mean 'hypotesis'?"),
        ({"premise": ["p"], "hypothesis": "h", "label": 0}, "'premise' must be text or a number"),
        ({"premise": "p", "hypothesis": "h", "label": 2}, "the answer must be one of"),
        ({"premise": "p", "hypothesis": "h", "label": "Maybe"}, "or its number from 0 to 1, not 'Maybe'"),
        ({"premise": "p", "hypothesis": "\ud800", "label": 0}, "half of a surrogate pair"),
    ],
)
def test_records_that_do_not_fill_it(tmp_path, write_records, record, message):
    path = write_records(tmp_path / "x.jsonl", [record])
    with pytest.raises(DataError) as caught:
        [fill(NLI, record) for record in json_lines(path)]
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert message in str(caught.value)


def test_ranking(scripted, vocabulary):
    """By measures that disagree: of a long likely choice, a short one, and one that is likely anyway."""
    template = Template(inputs="{q}", choices="{choices}", target="{gold}", unconditional="Answer:")
    choices = ["éé", "a b c d e f", "zz"]
    total = {"éé": -3.0, "a b c d e f": -5.0, "zz": -4.0}
    alone = {"éé": -3.5, "a b c d e f": -5.1, "zz": -9.0}
    trained = scripted()

    def score(window):
        said = vocabulary.decode(window.said).strip()
        by = alone if vocabulary.decode(window.read).startswith("Answer:") else total
        tokens = len(window.said)
        return Scored(np.full(tokens, by[said] / tokens), np.zeros(tokens, bool))

    trained.score = score
    asked = [fill(template, Record("x", {"q": "Q?", "choices": choices, "gold": gold})) for gold in range(3)]
    figures, told = rank(trained, template, asked, [question.inputs for question in asked])
    by_hand = {
        "acc": [total[choice] for choice in choices],
        "acc_norm": [total[choice] / len(choice) for choice in choices],
        "acc_bytes": [total[choice] / len(choice.encode()) for choice in choices],
        "acc_tokens": [total[choice] / len(vocabulary.encode(f" {choice}")) for choice in choices],
        "acc_mutual_info": [total[choice] - alone[choice] for choice in choices],
    }
    expected = {name: choices[int(np.argmax(values))] for name, values in by_hand.items()}
    assert expected["acc"] == "éé" and expected["acc_norm"] == "a b c d e f" and expected["acc_mutual_info"] == "zz"
    assert all(one["chosen"] == expected for one in told)
    assert figures == {**dict.fromkeys(by_hand, pytest.approx(1 / 3)), "examples": 3}


def test_written_answers(scripted):
    template = Template(inputs="{q}", target="{answers}")
    asked = [
        fill(template, Record("x, line 1", {"q": "Which river?", "answers": ["Nile", "the river Nile"]})),
        fill(template, Record("x, line 2", {"q": "When?", "answers": "1066"})),
    ]
    trained = scripted({"Which river?": " The River Nile!", "When?": " in 1066"}.__getitem__)
    figures, told = write(trained, template, asked, [question.inputs for question in asked], 7)
    assert figures == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2), "examples": 2}
    assert told[0]["written"] == "The River Nile!"
    ((_, sampler, room, stop), _) = trained.asked
    assert (sampler.temperature, room, stop) == (0.0, 7, ("\n",))
    with pytest.raises(
        DataError, match=r"x, line 1: a prompt of .* tokens leaves no room for 7 more in the context of 9"
    ):
        write(scripted(context=9), template, asked, ["Which river?" * 3, "When?"], 7)
