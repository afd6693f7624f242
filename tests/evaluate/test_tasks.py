"""seqio's Evaluator against the t5 package's metrics, called by hand on the texts of the sources."""

from dataclasses import replace

import numpy as np
import pytest

from pathways_lm.config import DataConfig
from pathways_lm.data import sources, t5_tasks
from pathways_lm.data.quiet_tensorflow import seqio, tfds
from pathways_lm.errors import ConfigError, DataError
from pathways_lm.evaluate.answers import exact_match, f1
from pathways_lm.evaluate.scoring import Scored
from pathways_lm.evaluate.tasks import TaskEvaluator

DATA = DataConfig(validation_fraction=0.02)
NUMBER = 25


@pytest.fixture(scope="module")
def metrics():
    from t5.evaluation import metrics

    return metrics


def some_wrong(answers: dict[str, str]):
    """Right answers, but for every third prompt a part of it, for every fourth nothing, and for others nonsense."""
    places = {prompt: number for number, prompt in enumerate(answers)}

    def write(prompt: str) -> str:
        number, answer = places[prompt], answers[prompt]
        return {0: answer, 1: answer, 2: answer[: len(answer) // 2], 3: "", 4: f"the {answer} é"}[number % 5]

    return write


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("arithmetic", ["accuracy"]),
        ("country_names", ["accuracy", "bleu"]),
        ("signature_to_docstring", ["bleu", "rouge", "accuracy"]),
        ("sorting", ["accuracy", "edit_distance"]),
    ],
)
def test_the_same_as_by_hand(vocabulary, scripted, metrics, name, wanted):
    held_out = sources.read(replace(DATA, mixture=name, objective="text_to_text"))[name]["validation"][:NUMBER]
    write = some_wrong({pair.inputs: pair.targets for pair in held_out})
    trained = scripted(write)
    found = TaskEvaluator(name, DATA, vocabulary, num_examples=NUMBER)(trained)
    targets, predictions = [pair.targets for pair in held_out], [write(pair.inputs) for pair in held_out]
    np.random.seed(0)  # of ROUGE's resampling
    expected = {
        key: value for metric in wanted for key, value in getattr(metrics, metric)(targets, predictions).items()
    }
    assert found == {name: pytest.approx(expected, abs=1e-9)}
    assert 0 < next(iter(expected.values())) < 100
    # Greedily, and with room for the longest answer and its end.
    longest = max(len(vocabulary.encode(target)) + 1 for target in targets)
    assert {(sampler.temperature, room) for _, sampler, room, _ in trained.asked} == {(0.0, longest)}


def test_a_mixture_is_each_of_its_tasks(vocabulary, scripted):
    found = TaskEvaluator("translation", DATA, vocabulary, num_examples=2)(scripted(lambda prompt: "x"), num_tokens=3)
    assert set(found) == {"country_names", "language_names"}
    assert found["country_names"]["accuracy"] == 0


SENTENCES = {"sentence1": tfds.features.Text(), "sentence2": tfds.features.Text(), "label": np.float32, "idx": np.int32}
QUESTIONS = {
    "id": tfds.features.Text(),
    "title": tfds.features.Text(),
    "context": tfds.features.Text(),
    "question": tfds.features.Text(),
    "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32}),
}
PARAGRAPHS = {
    "paragraph": tfds.features.Text(),
    "question": tfds.features.Text(),
    "answer": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["False", "True"]),
    "idx": {"paragraph": np.int32, "question": np.int32, "answer": np.int32},
}


def test_similarity_of_sentences(tmp_path, write_tfds, vocabulary, scripted, metrics):
    """Pearson and Spearman, of numbers that are written; what is no number counts as -1, by T5's postprocessing."""
    rows = [{"sentence1": f"A {i}.", "sentence2": f"B {i}.", "label": i % 6, "idx": i} for i in range(9)]
    write_tfds(tmp_path / "glue" / "stsb" / "1.0.0", SENTENCES, {"train": rows[:1], "validation": rows})
    written = ["0.4", "1.0", "2.2", "many", "3.8", "5.0", "1.2", "0.6", "2.0"]
    answers = {f"stsb sentence1: A {i}. sentence2: B {i}.": written[i] for i in range(9)}
    data = replace(DATA, datasets_dir=str(tmp_path))
    t5_tasks.names()  # registers them
    before = seqio.TaskRegistry.get("glue_stsb_v002")
    found = TaskEvaluator("glue_stsb_v002", data, vocabulary)(scripted(answers.__getitem__))["glue_stsb_v002"]
    targets = [float(i % 6) for i in range(9)]
    numbers = [-1.0 if text == "many" else float(text) for text in written]
    expected = metrics.pearson_corrcoef(targets, numbers) | metrics.spearman_corrcoef(targets, numbers)
    assert found == pytest.approx(expected)
    assert seqio.TaskRegistry.get("glue_stsb_v002") is before


def test_questions_with_several_answers(tmp_path, write_tfds, vocabulary, scripted, metrics):
    answers = [["the Nile", "Nile"], ["1066"], ["in Paris, France", "Paris"]]
    rows = [
        {
            "id": str(i),
            "title": "t",
            "context": f"Context {i}.",
            "question": f"Question {i}?",
            "answers": {"text": texts, "answer_start": [0] * len(texts)},
        }
        for i, texts in enumerate(answers)
    ]
    write_tfds(tmp_path / "squad" / "v1.1" / "3.0.0", QUESTIONS, {"train": rows[:1], "validation": rows})
    written = ["nile", "in 1066", "London"]
    trained = scripted(lambda prompt: next(written[i] for i in range(3) if f"Context {i}" in prompt))
    data = replace(DATA, datasets_dir=str(tmp_path))
    found = TaskEvaluator("squad_v010_allanswers", data, vocabulary)(trained)["squad_v010_allanswers"]
    assert found == pytest.approx(metrics.squad(answers, written))
    assert found["em"] == pytest.approx(100 / 3)


def test_answers_in_groups(tmp_path, write_tfds, vocabulary, scripted, metrics):
    """MultiRC: F1 over all answers, and questions of which every answer is right."""
    rows = [
        {
            "paragraph": "P.",
            "question": f"Q{i // 3}?",
            "answer": f"A{i}",
            "label": int(i % 2 == 0),
            "idx": {"paragraph": 0, "question": i // 3, "answer": i},
        }
        for i in range(9)
    ]
    write_tfds(tmp_path / "super_glue" / "multirc" / "1.0.2", PARAGRAPHS, {"train": rows[:1], "validation": rows})
    written = ["True", "False", "True", "True", "True", "False", "True", "False", "maybe"]

    def write(prompt: str) -> str:
        return next(written[i] for i in range(9) if f"A{i}" in prompt)

    data = replace(DATA, datasets_dir=str(tmp_path))
    found = TaskEvaluator("super_glue_multirc_v102", data, vocabulary)(scripted(write))["super_glue_multirc_v102"]
    # Of answers 0, 2, 4, 6, 8 that are right, four are called so, and one more that is not.
    precision, recall = 4 / 5, 4 / 5
    assert found["f1"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    # The first question alone is answered all right.
    assert found["exact_match"] == pytest.approx(100 / 3)


def test_metrics_of_scores(vocabulary, scripted):
    """A metric that asks for scores is given the log-likelihood of each example's targets after its inputs."""
    pairs = sources.read(replace(DATA, mixture="arithmetic", objective="text_to_text"))["arithmetic"]["validation"][:3]
    evaluator = TaskEvaluator("arithmetic", DATA, vocabulary, num_examples=3)
    seen = []

    def mean_score(targets, scores):
        seen.extend(scores.tolist())
        return {"mean": float(np.mean(scores))}

    task = seqio.TaskRegistry.get("arithmetic")
    scored = task.replace(metric_fns=[mean_score])
    evaluator._evaluators[0]._eval_tasks = [scored]
    trained = scripted()
    trained.score = lambda window: Scored(np.full(len(window.said), -0.5), np.ones(len(window.said), bool))
    found = evaluator(trained)
    expected = [-0.5 * len(vocabulary.encode(pair.targets)) for pair in pairs]
    assert seen == pytest.approx(expected)
    assert found == {"arithmetic": {"mean": pytest.approx(np.mean(expected))}}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("aritmetic", ConfigError, "there is no task 'aritmetic'; did you mean 'arithmetic'?"),
        ("python_docs", DataError, "task 'python_docs' has documents and no metrics"),
        ("glue_cola_v002", DataError, "needs the data set glue/cola:1.0.0, which is not at"),
    ],
)
def test_what_cannot_be_evaluated(vocabulary, tmp_path, name, kind, message):
    with pytest.raises(kind) as caught:
        TaskEvaluator(name, replace(DATA, datasets_dir=str(tmp_path)), vocabulary)
    assert message in str(caught.value)


def test_a_split_that_is_not_there(vocabulary):
    with pytest.raises(DataError, match="task 'sorting' has no split 'test', only train, validation"):
        TaskEvaluator("sorting", DATA, vocabulary, split="test")


ANSWERS = [
    ("the Nile", "Nile"),
    ("The  big, blue Nile.", "a blue nile"),
    ("An answer", "the answer"),
    ("in 1066", "1066"),
    ("London", "Paris"),
    ("U.S.", "us"),
    ("", "Paris"),
    ("a a b", "a b b"),
]


@pytest.mark.parametrize(("written", "right"), ANSWERS)
def test_squad_s_normal_form(metrics, written, right):
    expected = metrics.squad([[right]], [written])
    assert 100 * exact_match(written, right) == expected["em"]
    assert 100 * f1(written, right) == pytest.approx(expected["f1"])
