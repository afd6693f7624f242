"""The curves: what is drawn, what is left out, and the picture's size."""

import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

from pathways_lm.report.plots import charts, running_median, save_picture, thinned
from pathways_lm.report.read import read_run

ALL = [
    "Loss",
    "Bits per byte",
    "Loss, logarithmic steps",
    "Learning rate",
    "Gradient norm",
    "Parameter norm",
    "Z-loss",
    "Speed",
]


def svgs(folder: Path) -> dict[str, str]:
    return {chart.title: chart.svg for chart in charts(read_run(folder))}


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]


def test_every_chart_is_an_svg_of_its_own(run_folder: Path) -> None:
    drawn = svgs(run_folder)
    assert list(drawn) == ALL
    for svg in drawn.values():
        assert svg.startswith("<svg")
        assert "step" in texts(svg)
    # Clip paths of one chart must not be those of another.
    ids = [
        node.get("id")
        for svg in drawn.values()
        for node in ElementTree.fromstring(svg).iter()
        if node.tag == "clipPath"
    ]
    assert len(ids) == len(set(ids))


def test_the_yardsticks_are_labelled_in_the_chart(run_folder: Path) -> None:
    labels = texts(svgs(run_folder)["Bits per byte"])
    assert "gzip -9: 2.214" in labels
    assert "xz -9: 1.973" in labels


def test_restarts_are_marked_and_only_they(run_folder: Path, plausible: SimpleNamespace) -> None:
    assert all("var(--restart" in svg for svg in svgs(run_folder).values())
    rows = [
        {"kind": "event", "step": 0, "time": 0.0, "what": "start", "detail": ""},
        plausible.train_row(10, 1.0, 5.0),
        plausible.train_row(20, 2.0, 4.0),
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    assert not any("var(--restart" in svg for svg in svgs(run_folder).values())


def test_what_was_not_logged_is_not_drawn(run_folder: Path, plausible: SimpleNamespace) -> None:
    plausible.write_lines(
        run_folder / "metrics.jsonl", [{"kind": "train", "step": i, "time": 0.0, "loss": 5.0 - i} for i in range(4)]
    )
    assert list(svgs(run_folder)) == ["Loss", "Loss, logarithmic steps"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", [[4.0], [math.nan], [math.nan, math.inf, 3.0, math.nan], [0.0, 0.0], [1e30, 1e-30]])
def test_odd_values_are_drawn_or_left_out_without_a_warning(
    run_folder: Path, losses: list[float], plausible: SimpleNamespace
) -> None:
    rows = [
        plausible.train_row(step, 0.0, loss) | {"grad_norm": loss, "tokens_per_second": loss}
        for step, loss in enumerate(losses)
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    assert ("Loss" in svgs(run_folder)) == any(math.isfinite(loss) for loss in losses)
    save_picture(read_run(run_folder), run_folder / "picture.png")


def test_the_untrained_model_does_not_flatten_the_curves(run_folder: Path) -> None:
    # Step 0 has 15.9 nats and 10.8 bits; from step 100 on it is 5.2 and 2.4 at most, the yardsticks included.
    drawn = svgs(run_folder)
    assert max(float(text) for text in texts(drawn["Loss"]) if re.fullmatch(r"\d+\.\d+", text)) < 6
    assert max(float(text) for text in texts(drawn["Bits per byte"]) if re.fullmatch(r"\d+\.\d+", text)) < 3


@pytest.mark.filterwarnings("error")
def test_a_run_resumed_from_its_first_step_is_drawn(run_folder: Path, plausible: SimpleNamespace) -> None:
    rows = [{"kind": "event", "step": 0, "time": 0.0, "what": "resume", "detail": ""}, *plausible.rows[1:3]]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    assert list(svgs(run_folder)) == ALL


def test_names_with_dollars_are_text_and_no_formula(run_folder: Path) -> None:
    (run_folder / "run.json").write_text(r'{"corpus": {"yardsticks": {"$\\frac$ <b>&": 2.0}}}')
    assert r"$\frac$ <b>&: 2.000" in texts(svgs(run_folder)["Bits per byte"])


def test_long_curves_keep_their_extremes_and_stay_small() -> None:
    noise = np.random.default_rng(0)
    steps, values = np.arange(50_000.0), noise.normal(size=50_000)
    values[31_415] = 1000.0
    values[27_182] = -1000.0
    thin_steps, thin_values = thinned(steps, values)
    assert len(thin_steps) <= 1000
    assert np.all(np.diff(thin_steps) > 0)
    assert thin_values[thin_steps == 31_415] == 1000.0
    assert thin_values[thin_steps == 27_182] == -1000.0


def test_therunning_median_follows_a_line_and_ignores_a_spike() -> None:
    steps = np.arange(10.0, 1010.0, 10.0)
    values = 8 - steps / 200
    spiked = values.copy()
    spiked[40] = 500.0
    for given in (values, spiked):
        at, medians = running_median(steps, given)
        np.testing.assert_array_equal(at, steps)
        np.testing.assert_allclose(medians, values, atol=0.2)


def test_the_picture_is_a_png_of_the_promised_size(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    save_picture(read_run(run_folder), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1200, 450)


def test_drawing_leaves_the_global_settings_of_matplotlib_alone(run_folder: Path) -> None:
    before = dict(matplotlib.rcParams)
    svgs(run_folder)
    assert dict(matplotlib.rcParams) == before


def test_answers_are_drawn_by_task(run_folder: Path, plausible: SimpleNamespace) -> None:
    """A line for each task that has the metric; BLEU for one of two; the curve begins with the untrained model."""
    told = [{"names": {"loss": 2.0, "accuracy": step / 10, "bleu": step / 20}, "sums": {"loss": 1.0, "accuracy": 5.0}}
            for step in (0, 100, 200)]  # fmt: skip
    rows = [
        {"kind": "validation", "step": 100 * place, "time": 0.0, "loss": 1.5, "accuracy": 7.5, "tasks": tasks}
        for place, tasks in enumerate(told)
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    drawn = svgs(run_folder)
    assert {"Accuracy", "BLEU", "Loss of each task"} <= set(drawn)
    assert {"names", "sums"} <= set(texts(drawn["Accuracy"]))
    assert "names" in texts(drawn["BLEU"]) and "sums" not in texts(drawn["BLEU"])


def test_answers_of_a_single_task(run_folder: Path, plausible: SimpleNamespace) -> None:
    rows = [{"kind": "validation", "step": step, "time": 0.0, "loss": 1.5, "accuracy": 50.0} for step in (0, 100)]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    assert "Accuracy" in svgs(run_folder) and "BLEU" not in svgs(run_folder)
