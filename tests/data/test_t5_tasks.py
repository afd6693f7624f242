"""Tasks of the t5 package, on data made here; and what is said where there is none."""

import socket

import numpy as np
import pytest

from pathways_lm.config import DataConfig
from pathways_lm.data import sources, t5_tasks
from pathways_lm.data.quiet_tensorflow import tfds
from pathways_lm.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def config(root, mixture, objective="text_to_text") -> DataConfig:
    return DataConfig(mixture=mixture, datasets_dir=str(root), objective=objective)


def test_glue_cola(tmp_path, write_tfds):
    """T5's form of it (arXiv:1910.10683, appendix D.1), with the data set's own validation."""
    features = {
        "sentence": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["unacceptable", "acceptable"]),
        "idx": np.int32,
    }
    rows = [{"sentence": f"Sentence {i}.", "label": i % 2, "idx": i} for i in range(3)]
    write_tfds(tmp_path / "glue" / "cola" / "1.0.0", features, {"train": rows, "validation": rows[:1]})
    splits = sources.read(config(tmp_path, "glue_cola_v002"))["glue_cola_v002"]
    assert [pair.texts for pair in splits["train"]] == [
        ("cola sentence: Sentence 0.", "unacceptable"),
        ("cola sentence: Sentence 1.", "acceptable"),
        ("cola sentence: Sentence 2.", "unacceptable"),
    ]
    assert len(splits["validation"]) == 1


def test_c4_is_documents(tmp_path, write_tfds):
    features = {"text": tfds.features.Text(), "url": tfds.features.Text()}
    rows = [{"text": f"Page {i}.", "url": "x"} for i in range(3)]
    write_tfds(tmp_path / "c4" / "en" / "2.2.0", features, {"train": rows, "validation": rows[:2]})
    splits = sources.read(config(tmp_path, "c4_v220_span_corruption", "span_corruption"))["c4_v220_span_corruption"]
    assert [document.text for document in splits["train"]] == ["Page 0.", "Page 1.", "Page 2."]
    with pytest.raises(DataError, match=r"^task 'c4_v220_span_corruption' has documents, and data.objective='text_to_"):
        sources.read(config(tmp_path, "c4_v220_span_corruption"))


@pytest.mark.parametrize(
    ("mixture", "needed"),
    [
        ("glue_cola_v002", "glue/cola:1.0.0"),
        ("wmt_t2t_ende_v003", "wmt_t2t_translate/de-en:1.0.0"),
        ("squad_v010_allanswers", "squad/v1.1:3.0.0"),
        ("cnn_dailymail_v002", "cnn_dailymail:3.4.0"),
    ],
)
def test_absent_data(tmp_path, mixture, needed):
    """One line that says where it was looked for."""
    where = f"{tmp_path}/{needed.replace(':', '/')}"
    with pytest.raises(DataError) as caught:
        sources.read(config(tmp_path, mixture))
    assert str(caught.value) == (
        f"task '{mixture}' needs the data set {needed}, which is not at '{where}' (data.datasets_dir); "
        "prepare it there with TensorFlow Datasets"
    )


def test_a_mixture_is_all_its_tasks(tmp_path):
    with pytest.raises(DataError, match=r"^task 'glue_\w+' needs the data set glue/\w+:1.0.0, which is not at"):
        sources.read(config(tmp_path, "glue_v002_proportional"))


def test_names():
    """Those that the T5 paper trains on."""
    papers = {"c4_v220_span_corruption", "squad_v010_allanswers", "cnn_dailymail_v002", "wmt15_enfr_v003"}
    assert papers <= t5_tasks.names()
    message = r"^data.mixture has no task or mixture 'glue_cola'; did you mean 'glue_cola_v002'\?$"
    with pytest.raises(ConfigError, match=message):
        sources.read(DataConfig(mixture="glue_cola"))
