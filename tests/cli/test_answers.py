"""Held-out pairs answered while a run trains: the figures, the samples, the best checkpoint."""

import itertools
import json

import pytest

from pathways_lm.config import from_dict
from pathways_lm.data.cache import prepare
from pathways_lm.data.questions import held_out
from pathways_lm.decode.sampling import Sampler
from pathways_lm.language_model import load

SHAPES = {
    "decoder": ("data.inputs=prefix",),
    "encoder_decoder": ("model.shape=encoder_decoder", "model.block=pre_norm", "model.positions=relative"),
}


@pytest.fixture
def letters(micro, tmp_path):
    """A task that a small model learns at once: the letter behind a letter."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    rows = [
        {"inputs": f"{word} {here}", "targets": there}
        for word in ("after", "behind", "follows", "next to", "succeeds")
        for here, there in itertools.pairwise(alphabet)
    ]
    file = tmp_path / "letters.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (f"data.files={file}", "data.objective=text_to_text", "data.sequence_length=32", "data.examples=1000")


@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy_is_that_of_the_loaded_run(micro, letters, tmp_path, shape):
    """What validation told of the last step is what the run's own checkpoint answers, loaded anew."""
    run = tmp_path / "tuned"
    settings = (
        *(*letters, *SHAPES[shape], "data.validation_fraction=0.2", "data.vocabulary=", "train.num_steps=120"),
        *("train.evaluate_examples=12", "train.eval_every=40", "train.checkpoint_every=40", "train.checkpoints_best=1"),
        *("train.checkpoints_best_by=accuracy", "optimizer.learning_rate=0.05", "train.log_every=40"),
    )
    assert micro.main(*micro.train(run, *settings)) == 0
    told = {row["step"]: row["accuracy"] for row in micro.rows(run) if row["kind"] == "validation"}
    assert list(told) == [0, 40, 80, 120]
    assert all(0 <= accuracy <= 100 for accuracy in told.values())
    trained = load(str(run))
    experiment = from_dict(json.loads((run / "config.json").read_text()))
    (pairs,) = held_out(prepare(experiment.data, 512), experiment.data, 12).values()
    assert len(pairs) == 12
    written = [each.text for each in trained.generate([inputs for inputs, _ in pairs], Sampler(temperature=0.0), 8)]
    right = sum(text == targets for text, (_, targets) in zip(written, pairs, strict=True))
    assert told[120] == pytest.approx(100 * right / 12)
    assert max(told.values()) > 20
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in samples] == [(step, pairs[0][0]) for step in told]
    assert samples[-1]["text"] == written[0]
    # The last two are kept, and the best; of equals the newest.
    saved = {step: accuracy for step, accuracy in told.items() if step}
    best = max(saved, key=lambda step: (saved[step], step))
    assert set(micro.steps(run)) == {80, 120, best}
    assert ">Accuracy<" in (run / "report.html").read_text()


@pytest.mark.usefixtures("no_compile")
def test_a_figure_that_no_task_has(micro, letters, refused, tmp_path):
    settings = ("data.inputs=prefix", "train.evaluate_examples=3", "train.checkpoints_best=1")
    message = refused(*micro.train(tmp_path / "run", *letters, *settings, "train.checkpoints_best_by=bleu"))
    assert message.endswith("train.checkpoints_best_by='bleu' is no metric of files: they have accuracy")
