"""The page: its numbers, its safety and that it stands alone."""

import errno
import json
import math
import re
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathways_lm.errors import CheckpointError
from pathways_lm.report.page import page, write_report
from pathways_lm.report.read import read_run

HOSTILE = """<script>alert("1")</script> & </pre><img src=x onerror='a'> &lt; <!-- ]]> "'`"""
FACTS = [
    "version",
    "jax",
    "flax",
    "python",
    "device_kind",
    "num_devices",
    "num_processes",
    "mesh",
    "num_params",
    "vocab_fingerprint",
    "corpus",
]
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=5)
    | st.sampled_from(["<b>", "</pre>", "&lt;", "&amp", "<!--", '"', "'", "\n", "\t", "  "]),
    max_size=12,
).map("".join)
"""Text with what HTML takes for its own."""
START = {"kind": "event", "step": 0, "time": 1_780_000_000.0, "what": "start", "detail": ""}


class Page(HTMLParser):
    """What a browser would find: the elements, and the texts of chosen ones."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {
            tag: [] for tag in ("pre", "dt", "dd", "h1", "h2", "h3", "td", "footer", "title")
        }
        self._open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.texts:
            self._open.append(tag)
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.texts[tag][-1] += data

    @property
    def cards(self) -> dict[str, str]:
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def written(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def strings(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a nested value whose item is text."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        if isinstance(item, str):
            yield value, key
        elif isinstance(item, (dict, list)):
            yield from strings(item)


def test_the_headline_equals_what_the_rows_say(run_folder: Path, plausible: SimpleNamespace) -> None:
    latest = {(row["kind"], row["step"]): row for row in plausible.rows if row["kind"] != "event"}
    train = [row for (kind, _), row in latest.items() if kind == "train"]
    final = latest["validation", 2000]
    speed = statistics.median(row["tokens_per_second"] for row in train)
    below = {
        name: f"{100 * (yardstick - final['bits_per_byte']) / yardstick:.1f}% below {name}"
        for name, yardstick in plausible.facts["corpus"]["yardsticks"].items()
    }
    # Both processes: 3 s to the first step, then 0.29 s a step, for 1,230 and 1,000 steps.
    minutes, seconds = divmod(round(2 * 3 + 0.29 * (1230 + 1000)), 60)

    cards = written(run_folder).cards
    assert cards["Parameters"].startswith("8.127 M8,126,720")
    assert cards["Steps"].startswith("2,000of 2,000")
    assert cards["Tokens seen"].startswith("8.192 M")
    assert f"{2000 * 4096 / (131_077 + 3_491_030):.2f} × the training corpus" in cards["Tokens seen"]
    assert cards["Validation loss"].startswith(f"{final['loss']:.4f}nats per token")
    assert cards["Bits per byte"].startswith(f"{final['bits_per_byte']:.3f}{below['gzip -9']} (2.214)")
    assert below["xz -9"] in cards["Bits per byte"]
    assert cards["Tokens per second"] == f"{speed:,.0f}median · 31.0% of the peak FLOP/s"
    assert cards["Wall time"].startswith(f"{minutes} min {seconds} s")
    assert cards["Devices"] == "8 cpumesh: data 4 × tensor 2 · 2 processes"


def test_a_loss_that_rose_again_shows_where_it_was_lowest(run_folder: Path, plausible: SimpleNamespace) -> None:
    rows = [
        {"kind": "validation", "step": step, "time": 0.0, "loss": loss}
        for step, loss in ((10, 3.0), (20, 2.5), (30, 2.75))
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    assert written(run_folder).cards["Validation loss"] == "2.7500nats per token · best 2.5000 at step 20"


@pytest.mark.filterwarnings("error")
def test_a_run_that_diverged_has_a_page(run_folder: Path, plausible: SimpleNamespace) -> None:
    rows = [{**row, "loss": math.nan, "bits_per_byte": math.nan} if row["step"] > 50 else row for row in plausible.rows]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    found = written(run_folder)
    assert found.cards["Validation loss"] == "nannats per token · best 15.9000 at step 0"
    assert found.cards["Bits per byte"] == "nan"
    assert "Loss" in found.texts["h3"]


def test_bits_above_a_yardstick_are_said_to_be_above(run_folder: Path, plausible: SimpleNamespace) -> None:
    row = {"kind": "validation", "step": 10, "time": 0.0, "loss": 5.0, "bits_per_byte": 2.0}
    plausible.write_lines(run_folder / "metrics.jsonl", [row])
    assert "9.7% below gzip -9 (2.214) · 1.4% above xz -9 (1.973)" in written(run_folder).cards["Bits per byte"]


def test_tables_hold_parameters_corpus_config_and_events(run_folder: Path, plausible: SimpleNamespace) -> None:
    cells = written(run_folder).texts["td"]
    assert f"{sum(row['count'] for row in plausible.parameters):,}" in cells
    for row in plausible.parameters:
        assert row["path"] in cells
        assert row["spec"] in cells
    assert {"python_stdlib", "11,520,400", "3,491,030", "13,637", f"{11_520_400 / 3_491_030:.2f}"} <= set(cells)
    for section in plausible.config.values():
        if isinstance(section, dict):
            assert set(section) <= set(cells)
    assert {"resume", "from checkpoints/1000", "stop", "all steps done"} <= set(cells)


def test_samples_stand_newest_first_with_their_whitespace(run_folder: Path, plausible: SimpleNamespace) -> None:
    rows = [
        {"step": step, "time": 0.0, "prompt": "def ", "text": f"f{step}(x):\n\t  return\n\n\n"}
        for step in (100, 200, 200)
    ]
    plausible.write_lines(run_folder / "samples.jsonl", rows)
    assert written(run_folder).texts["pre"] == ["def f200(x):\n\t  return\n\n\n", "def f100(x):\n\t  return\n\n\n"]


def test_many_samples_are_all_there(run_folder: Path, plausible: SimpleNamespace) -> None:
    plausible.write_lines(
        run_folder / "samples.jsonl",
        [{"step": step, "time": 0.0, "prompt": "", "text": f"{step}"} for step in range(40)],
    )
    assert written(run_folder).texts["pre"] == [str(step) for step in reversed(range(40))]


def test_hostile_text_stays_text_wherever_it_stands(run_folder: Path, plausible: SimpleNamespace) -> None:
    harmless = written(run_folder)
    config, facts, parameters = (
        json.loads(json.dumps(value)) for value in (plausible.config, plausible.facts, plausible.parameters)
    )
    rows = plausible.rows
    for holder in (config, facts, parameters, [row for row in rows if row["kind"] == "event"]):
        for container, key in strings(holder):
            if key not in ("kind", "what"):
                container[key] = HOSTILE.replace("/", "|") if holder is config and key == "name" else HOSTILE
    facts["corpus"]["tasks"][HOSTILE] = {HOSTILE: {"tokens": 1}}
    facts["corpus"]["yardsticks"][HOSTILE] = 2.0
    facts["mesh"][HOSTILE] = 1
    config[HOSTILE] = {HOSTILE: HOSTILE}
    for name, value in (("config", config), ("run", facts), ("parameters", parameters)):
        (run_folder / f"{name}.json").write_text(json.dumps(value))
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    plausible.write_lines(run_folder / "samples.jsonl", [{"step": 1, "time": 0.0, "prompt": HOSTILE, "text": HOSTILE}])

    hostile = written(run_folder)
    assert hostile.tags == harmless.tags
    assert hostile.texts["pre"] == [HOSTILE + HOSTILE]
    assert hostile.texts["td"].count(HOSTILE) >= 10
    assert not [name for _, attributes in hostile.elements for name in attributes if name.startswith("on")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_any_sample_is_read_back_as_it_was_written(run_folder: Path, text: str, plausible: SimpleNamespace) -> None:
    plausible.write_lines(run_folder / "metrics.jsonl", [START])
    plausible.write_lines(run_folder / "samples.jsonl", [{"step": 1, "time": 0.0, "prompt": text, "text": text}])
    assert written(run_folder).texts["pre"] == [text + text]


def test_control_characters_and_lone_surrogates_are_shown_as_signs(
    run_folder: Path, plausible: SimpleNamespace
) -> None:
    plausible.write_lines(
        run_folder / "samples.jsonl", [{"step": 1, "time": 0.0, "prompt": "", "text": "\x00\x1b\r\x7f\ud800\n"}]
    )
    assert written(run_folder).texts["pre"] == ["␀␛␍␡?\n"]


def test_the_page_loads_nothing(run_folder: Path) -> None:
    content = write_report(run_folder).read_text(encoding="utf-8")
    found = Page(content)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", content)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", without_names)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "image"}
    references = [
        value
        for _, attributes in found.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert all(value is not None and value.startswith("#") for value in references)


def test_a_run_that_only_started_has_a_page(run_folder: Path, plausible: SimpleNamespace) -> None:
    for name in ("run.json", "parameters.json", "samples.jsonl"):
        (run_folder / name).unlink()
    plausible.write_lines(run_folder / "metrics.jsonl", [START])
    found = written(run_folder)
    assert found.texts["h1"] == ["palm-tiny"]
    assert found.texts["h2"] == ["Curves", "Config", "Events"]
    assert found.cards["Steps"].startswith("0of 2,000")


@pytest.mark.parametrize("missing", FACTS)
def test_any_fact_may_be_missing(run_folder: Path, missing: str, plausible: SimpleNamespace) -> None:
    plausible.write_lines(
        run_folder / "metrics.jsonl", [START, {"kind": "train", "step": 1, "time": 0.0, "tokens": 512}]
    )
    (run_folder / "run.json").write_text(
        json.dumps({key: value for key, value in plausible.facts.items() if key != missing})
    )
    assert page(read_run(run_folder)).endswith("</html>\n")


def test_a_page_is_written_whole_or_not_at_all(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_report(run_folder).read_bytes()
    before = sorted(run_folder.iterdir())

    def full_disk(self: Path, data: bytes) -> NoReturn:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(CheckpointError, match=r"report\.html cannot be written: No space left on device$"):
        write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == first
    assert sorted(run_folder.iterdir()) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder: it has no config\.json$"):
        write_report(tmp_path)


def test_the_card_of_answers(run_folder: Path, plausible: SimpleNamespace) -> None:
    """The last mean, each task's, and the best where that was earlier."""
    rows = [
        {
            **{"kind": "validation", "step": step, "time": 0.0, "loss": 1.5, "accuracy": mean},
            "tasks": {"sorting": {"loss": 1.0, "accuracy": mean - 10}, "dates": {"loss": 1.0, "accuracy": mean + 10}},
        }
        for step, mean in ((0, 20.0), (100, 60.0), (200, 50.0))
    ]
    plausible.write_lines(run_folder / "metrics.jsonl", rows)
    card = Page(page(read_run(run_folder))).cards["Accuracy"]
    assert card == "50.0%sorting 40.0% · dates 60.0% · best 60.0% at step 100"
