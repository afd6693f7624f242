"""Several runs on one page: a line for each, what differs, what each wrote."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pathways_lm.errors import CheckpointError
from pathways_lm.report.compare import comparison, names_of, write_comparison
from pathways_lm.report.compare_plots import compared_charts
from pathways_lm.report.read import read_run
from pathways_lm.report.tasks import colour

ANSWERS = ({"sorting": 10.0, "dates": 30.0}, {"sorting": 50.0, "dates": 90.0})


def validation(step: int, accuracies: dict[str, float]) -> dict:
    tasks = {task: {"loss": 2.0 - accuracy / 100, "accuracy": accuracy} for task, accuracy in accuracies.items()}
    mean = sum(accuracies.values()) / len(accuracies)
    return {"kind": "validation", "step": step, "time": 0.0, "loss": 1.5, "accuracy": mean, "tasks": tasks}


@pytest.fixture
def two(run_folder, plausible, tmp_path):
    """The plausible run, and a shorter one of two tasks with another rate and other samples."""
    other = tmp_path / "tuned"
    other.mkdir()
    config = {**plausible.config, "name": "tuned", "optimizer": {"learning_rate": 0.5}}
    config["data"] = {**plausible.config["data"], "batch_size": 32}
    (other / "config.json").write_text(json.dumps(config))
    rows = [plausible.train_row(step, step * 0.5, 4 - step / 100) for step in range(10, 210, 10)]
    rows += [validation(100 * (number + 1), told) for number, told in enumerate(ANSWERS)]
    plausible.write_lines(other / "metrics.jsonl", rows)
    samples = [{"step": 200, "time": 0.0, "prompt": prompt, "text": "<i>mine</i>"} for prompt in ("def ", "sort: 2 1")]
    plausible.write_lines(other / "samples.jsonl", samples)
    return [run_folder, other]


def test_every_quantity_has_a_line_for_each_run_that_has_it(two):
    runs = [read_run(folder) for folder in two]
    charts = {chart.title: chart.svg for chart in compared_charts(runs, names_of(runs))}
    both = {"Validation loss", "Training loss", "Training loss by tokens", "Step time", "Speed", "Learning rate"}
    second = {"Accuracy", "Accuracy of sorting", "Accuracy of dates", "Loss of sorting", "Loss of dates"}
    assert set(charts) == both | second | {"Bits per byte", "Gradient norm"}
    for title, svg in charts.items():
        ElementTree.fromstring(svg)
        drawn = [colour(place) in svg for place in range(3)]
        assert drawn == [title not in second, title in both | second | {"Gradient norm"}, False], title
    assert "tokens" in charts["Training loss by tokens"]


def test_the_table_of_what_differs(two):
    page = comparison([read_run(folder) for folder in two])
    rows = [re.sub(r"<.*?>", " ", row).split() for row in re.findall(r"<tr>.*?</tr>", page)]
    assert ["data.batch_size", "16", "32"] in rows
    assert ["optimizer.learning_rate", "0.5"] in [[row[0], row[-1]] for row in rows if row]
    assert not [row for row in rows if row and row[0] in ("model.num_layers", "data.mixture")]
    assert ["validation", "loss", "2.5561", "1.5000"][:2] in [row[:2] for row in rows]
    assert ["accuracy", "of", "dates", "90.0"] in rows
    assert ["accuracy", "70.0"] in rows
    assert ["steps", "2,000", "200"] in rows


def test_samples_stand_side_by_side_and_are_text(two):
    page = comparison([read_run(folder) for folder in two])
    blocks = page.split('<div class="card beside">')[1:]
    assert [block.count("<pre>") for block in blocks] == [2, 1]
    assert "&lt;i&gt;mine&lt;/i&gt;" in blocks[0] and "<i>mine" not in page
    assert "return self._data[key]" in blocks[0] and "step 2,000" in blocks[0] and "step 200" in blocks[0]
    assert "not asked" in blocks[1]
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


def test_runs_of_one_name_are_told_by_their_paths(run_folder, plausible, tmp_path):
    other = tmp_path / "elsewhere" / run_folder.name
    other.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        (other / name).write_text((run_folder / name).read_text())
    runs = [read_run(run_folder), read_run(other)]
    assert names_of(runs) == [str(run_folder), str(other)]
    assert "The configs are the same." in comparison(runs)


def test_a_run_that_has_written_nothing(two, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    (empty / "metrics.jsonl").write_text("")
    assert "empty" in comparison([read_run(two[0]), read_run(empty)])
    assert "Nothing is logged yet." in comparison([read_run(empty), read_run(empty)])


def test_written_whole_or_refused(two, tmp_path):
    page = tmp_path / "page.html"
    assert write_comparison(two, page) == page
    assert page.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="given twice"):
        write_comparison([two[0], two[1], f"{two[0]}/."], page)
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_comparison([two[0], tmp_path], page)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_comparison(two, tmp_path / "nowhere" / "page.html")
