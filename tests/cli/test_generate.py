"""Files of prompts, stop strings, conversations."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace

import pytest

from pathways_lm.cli.answers import Answers, read_prompts
from pathways_lm.cli.chat import Chat
from pathways_lm.cli.flags import SAMPLING
from pathways_lm.data import sources
from pathways_lm.data.examples import VALIDATION
from pathways_lm.decode.beam import Beams
from pathways_lm.decode.contrastive import Contrastive
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import DataError
from pathways_lm.language_model import load

PROMPTS = [f"{word} " for word in ("def", "The", "import", "class", "return", "if", "for", "print")] * 5
OPTIONS = ["--num-tokens", "6", "--temperature", "0.9", "--seed", "4"]


def test_every_field_of_the_sampler_has_a_flag():
    assert list(SAMPLING) == [field.name for field in fields(Sampler)]
    Sampler(**{name: usual for name, (usual, _) in SAMPLING.items()})


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "other": 1}) + "\n" for prompt in PROMPTS))
    return path


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_and_started_again(undisturbed, asked, tmp_path, capfd, micro):
    """Every prompt is answered exactly once, and as without the kills."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert micro.main("generate", str(undisturbed), "--file", str(asked), "--out", str(whole), *OPTIONS) == 0
    assert f"{len(PROMPTS)} answers in {whole}" in capfd.readouterr().out
    command = [
        sys.executable,
        "-m",
        "pathways_lm",
        "generate",
        str(undisturbed),
        "--file",
        str(asked),
        "--out",
        str(cut),
    ]
    kept = 0
    for _ in range(2):
        job = subprocess.Popen([*command, *OPTIONS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while job.poll() is None and not (cut.exists() and cut.read_bytes().count(b"\n") > kept):
            time.sleep(0.005)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        kept = cut.read_bytes().count(b"\n")
        # As a machine that stops in the middle of a line would leave it.
        with cut.open("ab") as file:
            file.write(b'{"number": 3, "pro')
    assert micro.main("generate", str(undisturbed), "--file", str(asked), "--out", str(cut), *OPTIONS) == 0
    found = sorted(answers(cut), key=lambda answer: answer["number"])
    expected = sorted(answers(whole), key=lambda answer: answer["number"])
    assert [answer["number"] for answer in found] == list(range(len(PROMPTS)))
    for one, other in zip(found, expected, strict=True):
        # In a batch of other rows sums are rounded otherwise.
        assert one.pop("log_probs") == pytest.approx(other.pop("log_probs"), abs=1e-4)
        assert one == other
    assert kept > 0


def test_what_an_answer_holds(undisturbed, asked, tmp_path, micro):
    out = tmp_path / "out.jsonl"
    assert micro.main("generate", str(undisturbed), "--file", str(asked), "--out", str(out), *OPTIONS) == 0
    model = load(str(undisturbed))
    for answer in answers(out)[:5]:
        assert answer["prompt"] == PROMPTS[answer["number"]]
        assert answer["text"] == model.vocabulary.decode(answer["tokens"])
        assert len(answer["log_probs"]) == len(answer["tokens"]) <= 6
        assert answer["why"] in ("end", "length")


def test_a_file_begun_otherwise(undisturbed, asked, tmp_path, refused, micro):
    out = tmp_path / "out.jsonl"
    flags = ["generate", str(undisturbed), "--file", str(asked), "--out", str(out), "--num-tokens", "2"]
    out.write_text("mine\n")
    assert "was not written by this command" in refused(*flags)
    assert out.read_text() == "mine\n"
    out.unlink()
    assert micro.main(*flags) == 0
    before = out.read_text()
    assert "seed=0, not 1" in refused(*flags, "--seed", "1")
    lines = before.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1] + lines[1])
    assert "line 3 answers prompt" in refused(*flags)
    out.write_text(lines[0].replace('"prompt": "', '"prompt": "other') + lines[1])
    assert "line 1 answers another prompt" in refused(*flags)
    out.write_text("{}\n" + lines[1])
    assert "line 1 is damaged" in refused(*flags)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a"}\n{"prompt": 3}\n', "line 2: 'prompt' must be text"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: has no field 'prompt'"),
        (b'{"prompt": "a"}\n{]\n', "line 2: not JSON"),
        (b'{"prompt": "a"}\n\xff\n', "line 2: not UTF-8"),
        (b'{"prompt": ""}\n', "line 1: holds no text"),
        (b"", "holds no text"),
    ],
)
def test_bad_files(tmp_path, content, words):
    path = tmp_path / "asked.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_prompts(str(path), "prompt")


def test_lines_of_text(tmp_path):
    path = tmp_path / "asked.txt"
    path.write_text("one two\n\nthree\n")
    assert read_prompts(str(path), "prompt") == ["one two", "three"]


def test_the_inputs_of_a_task(undisturbed, tmp_path, micro, refused):
    """Those that the run would be validated on, as the task has them."""
    out, flags = tmp_path / "out.jsonl", ["--num-tokens", "1", "--truncate"]
    assert "no task 'speling'; did you mean 'spelling'?" in refused(
        "generate", str(undisturbed), "--task", "speling", "--out", str(out), *flags
    )
    assert micro.main("generate", str(undisturbed), "--task", "spelling", "--out", str(out), *flags) == 0
    data = load(str(undisturbed)).experiment.data
    data = replace(data, mixture="spelling", objective="text_to_text", files="")
    expected = [pair.inputs for pair in sources.read(data)["spelling"][VALIDATION]]
    assert [each["prompt"] for each in sorted(answers(out), key=lambda each: each["number"])] == expected


def test_two_jobs_do_not_write_one_file(tmp_path):
    with Answers(str(tmp_path / "out.jsonl"), ["a"], {}) as first:
        with pytest.raises(DataError, match="being written by another process"):
            Answers(str(tmp_path / "out.jsonl"), ["a"], {})
        first.write(0, {"text": "b"})
    assert answers(tmp_path / "out.jsonl") == [{"number": 0, "prompt": "a", "text": "b"}]


@pytest.fixture(scope="module")
def model(undisturbed):
    return load(str(undisturbed))


def test_stop_strings(model):
    """A text ends before the first of them; its tokens are those of the free text up to the one that completes it."""
    sampler = Sampler(temperature=0.9)
    (free,) = model.generate(["The "], sampler, 25, seed=3)
    stop = free.text[4:6]
    (stopped,) = model.generate(["The "], sampler, 25, [stop, "never this"], seed=3)
    assert stopped.why == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    decode = model.vocabulary.decode
    assert stop in decode(stopped.tokens) and stop not in decode(stopped.tokens[:-1])
    (unstopped,) = model.generate(["The "], sampler, 25, ["never this"], seed=3)
    assert asdict(unstopped) == asdict(free)


def test_a_stop_string_that_does_not_come_is_told(undisturbed, micro, capfd):
    flags = ["--prompt", "The ", "--num-tokens", "5", "--stop", "never this"]
    assert micro.main("generate", str(undisturbed), *flags) == 0
    assert "1 of 1 continuations did not come to a stop string in 5 tokens" in capfd.readouterr().err


def test_truncated_on_the_left_when_asked(model):
    long = "one two three " * 40
    (found,) = model.generate([long], Sampler(temperature=0), 3, truncate=True)
    assert len(found.tokens) + (found.why == "end") >= 1


def test_best_of(model):
    """The likeliest of those that the same seed draws one by one."""
    sampler = Sampler(temperature=1.2)
    several = model.generate(["The "] * 4, sampler, 8, seed=1)
    (best,) = model.generate(["The "], sampler, 8, seed=1, best_of=4)
    means = [sum(one.log_probs) / len(one.log_probs) if one.log_probs else 0.0 for one in several]
    assert best.tokens == several[means.index(max(means))].tokens


def test_a_regular_expression(model):
    (found,) = model.generate(["x = "], Sampler(), 20, grammar=model.grammar(regex="[0-9]{3}é?;"))
    assert found.why == "end" and found.text[:3].isdigit() and found.text[3:] in (";", "é;")


def test_searches(undisturbed, micro, model, capfd):
    """The best hypotheses with their scores, as from Python; one contrastive text."""
    flags = ["generate", str(undisturbed), "--prompt", "The ", "--num-tokens", "4"]
    assert micro.main(*flags, "--beams", "3", "--length-penalty", "0.6", "--num-return", "2") == 0
    shown = capfd.readouterr().out
    ((best, second),) = model.beam(["The "], Beams(num_beams=3, length_penalty=0.6, num_return=2), 4)
    rule = "-" * 70
    assert shown == f"The {best.text}\n{rule} {best.score:.4f}\nThe {second.text}\n{rule} {second.score:.4f}\n"
    assert best.score >= second.score
    assert micro.main(*flags, "--contrastive", "0.6") == 0
    (one,) = model.contrastive(["The "], Contrastive(alpha=0.6, top_k=4), 4)
    assert capfd.readouterr().out == f"The {one.text}\n{'-' * 80}\n"


def test_its_own_draft(model):
    alone = model.generate(["The ", "def "], Sampler(temperature=0), 8)
    found, a_step = model.ahead_of(model, ["The ", "def "], Sampler(temperature=0), 8, ahead=3)
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    assert a_step > 1


def test_a_conversation():
    asked = []

    def reply(prompt):
        asked.append(prompt)
        yield from (" ye", "s\nUs", "ual\nUser", ": more")

    chat = Chat(reply, lambda prompt: len(prompt) < 70)
    pieces = list(chat.say("one?"))
    assert "".join(pieces) == " yes\nUsual"
    assert "".join(chat.say("two?")) == " yes\nUsual"
    assert asked == ["User: one?\nModel:", "User: one?\nModel: yes\nUsual\nUser: two?\nModel:"]
    # The first turn does not fit any more.
    list(chat.say("three, which is longer than the others?"))
    assert (
        asked[-1]
        == "User: two?\nModel: yes\nUsual\nUser: three, which is longer than the others?\nModel:"[-len(asked[-1]) :]
    )
    assert "one?" not in asked[-1]
