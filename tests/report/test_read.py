"""Reading a run folder: restarts, torn lines, missing and broken files."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pathways_lm.errors import CheckpointError
from pathways_lm.report.read import read_run, series


def test_the_later_of_two_rows_for_one_step_counts(run_folder: Path, plausible: SimpleNamespace) -> None:
    plausible.write_lines(
        run_folder / "metrics.jsonl",
        [
            plausible.train_row(10, 0.0, loss=5.0),
            plausible.train_row(20, 1.0, loss=4.0),
            {"kind": "validation", "step": 20, "time": 1.0, "loss": 4.5, "bits_per_byte": 3.0, "seconds": 1.0},
            plausible.train_row(20, 2.0, loss=3.0),
            {"kind": "validation", "step": 20, "time": 2.0, "loss": 3.5, "bits_per_byte": 2.0, "seconds": 1.0},
            plausible.train_row(10, 3.0, loss=6.0),
        ],
    )
    run = read_run(run_folder)
    assert [(row["step"], row["loss"]) for row in run.train] == [(10, 6.0), (20, 3.0)]
    assert [(row["step"], row["loss"]) for row in run.validation] == [(20, 3.5)]


def test_a_resume_forgets_the_steps_that_are_done_again(run_folder: Path, plausible: SimpleNamespace) -> None:
    resume = {"kind": "event", "step": 20, "time": 9.0, "what": "resume", "detail": ""}
    rows = [
        plausible.train_row(10, 0.0, 5.0),
        plausible.train_row(20, 1.0, 4.0),
        plausible.train_row(30, 2.0, 3.0),
        resume,
        plausible.train_row(25, 10.0, 3.5),
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    run = read_run(run_folder)
    assert [row["step"] for row in run.train] == [10, 20, 25]
    assert run.resumed_at == [20]


@pytest.mark.parametrize("kept", [1, 20, 60])
def test_a_last_line_cut_off_by_a_kill_is_ignored(run_folder: Path, kept: int, plausible: SimpleNamespace) -> None:
    path = run_folder / "metrics.jsonl"
    before = read_run(run_folder)
    with path.open("a") as file:
        file.write(json.dumps(plausible.train_row(2010, 0.0, 1.0))[:kept])
    after = read_run(run_folder)
    assert (after.train, after.validation, after.events) == (before.train, before.validation, before.events)
    assert (before.unreadable, after.unreadable) == (0, 1)


def test_a_line_cut_off_within_a_character_is_ignored(run_folder: Path) -> None:
    whole = json.dumps({"step": 2010, "time": 0.0, "prompt": "def ", "text": "é"}, ensure_ascii=False).encode()
    before = read_run(run_folder).samples
    with (run_folder / "samples.jsonl").open("ab") as file:
        file.write(whole[: whole.index("é".encode()) + 1])
    assert read_run(run_folder).samples == before


@pytest.mark.parametrize("line", ["null", "[1]", '{"kind": "train"}', '{"kind": "train", "step": "ten"}', "nonsense"])
def test_lines_without_a_step_are_counted_and_left_out(run_folder: Path, line: str, plausible: SimpleNamespace) -> None:
    (run_folder / "metrics.jsonl").write_text(f"{line}\n{json.dumps(plausible.train_row(10, 0.0, 5.0))}\n")
    run = read_run(run_folder)
    assert [row["step"] for row in run.train] == [10]
    assert run.unreadable == 1


def test_unicode_line_separators_do_not_end_a_line(run_folder: Path) -> None:
    text = "a\u2028b\u0085c\u000cd"
    row = {"step": 1, "time": 0.0, "prompt": "", "text": text}
    (run_folder / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [sample["text"] for sample in read_run(run_folder).samples] == [text]


def test_pauses_between_processes_are_no_wall_time(run_folder: Path, plausible: SimpleNamespace) -> None:
    def event(time: float, what: str) -> dict[str, object]:
        return {"kind": "event", "step": 0, "time": time, "what": what, "detail": ""}

    rows = [
        event(100.0, "start"),
        plausible.train_row(10, 107.0, 5.0),
        event(1000.0, "resume"),
        plausible.train_row(20, 1011.5, 4.0),
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    assert read_run(run_folder).seconds == pytest.approx(7.0 + 11.5)


def test_series_takes_numbers_only_and_marks_infinite_ones(run_folder: Path, plausible: SimpleNamespace) -> None:
    losses = [5.0, math.nan, None, math.inf, "low", 2.0]
    plausible.write_lines(
        run_folder / "metrics.jsonl",
        [plausible.train_row(i, 0.0, 1.0) | {"loss": loss} for i, loss in enumerate(losses)],
    )
    steps, values = series(read_run(run_folder).train, "loss")
    np.testing.assert_array_equal(steps, [0, 1, 3, 5])
    np.testing.assert_array_equal(values, [5.0, math.nan, math.nan, 2.0])


def test_what_stands_in_the_folder_is_what_is_read(run_folder: Path, plausible: SimpleNamespace) -> None:
    run = read_run(run_folder)
    wanted = {row["step"]: row["loss"] for row in plausible.rows if row["kind"] == "train"}
    assert {row["step"]: row["loss"] for row in run.train} == wanted
    assert run.name == "palm-tiny"
    assert run.yardsticks == plausible.facts["corpus"]["yardsticks"]


def test_only_config_and_metrics_must_be_there(run_folder: Path) -> None:
    for name in ("run.json", "parameters.json", "samples.jsonl"):
        (run_folder / name).unlink()
    run = read_run(run_folder)
    assert (run.facts, run.parameters, run.samples, run.yardsticks) == ({}, (), (), {})


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_without_the_needed_files_is_refused_in_one_line(run_folder: Path, name: str) -> None:
    (run_folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_run(run_folder)
    assert str(caught.value) == f"{run_folder} is not a run folder: it has no {name}"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^\S+/nowhere is not a run folder: it has no config\.json$"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", '{"name": ', "config.json is not JSON"),
        ("run.json", "[]", "run.json must hold a JSON object"),
        ("parameters.json", "{}", "parameters.json must hold a JSON list"),
    ],
)
def test_a_broken_file_is_named(run_folder: Path, name: str, content: str, told: str) -> None:
    (run_folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=told) as caught:
        read_run(run_folder)
    assert "\n" not in str(caught.value)
