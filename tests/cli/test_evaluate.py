"""`evaluate` with files and tasks, and `score`: what they print, and every mistake before anything is compiled."""

import json
import math

import jax
import numpy as np
import pytest

from pathways_lm import load
from pathways_lm.cli import main
from pathways_lm.models.batch import Batch

TEXT = "The 'assert' statement is a convenient way to insert debugging assertions into a program, and so is this.\n" * 3
TEMPLATE = {"inputs": "Question: {q}\nAnswer:", "choices": "{choices}", "target": "{label}"}
QUESTIONS = [{"q": f"Is {i} even?", "choices": ["yes", "no"], "label": i % 2} for i in range(5)]


@pytest.fixture
def files(tmp_path, write):
    """A folder with one file of each kind."""
    (tmp_path / "text.txt").write_text(TEXT)
    write(tmp_path / "template.json", [TEMPLATE])
    write(tmp_path / "written.json", [{"inputs": "{q}", "target": "{label}"}])
    write(tmp_path / "questions.jsonl", QUESTIONS)
    write(tmp_path / "passages.jsonl", [{"text": "the statement"}, {"text": "is a program"}])
    return tmp_path


@pytest.fixture(scope="module")
def write():
    return lambda path, records: path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def nothing_compiled(monkeypatch):
    """Neither what scores nor what writes."""
    for target in ("evaluate.scoring.Scorer._log_probs", "decode.generate.Generator.finished"):
        monkeypatch.setattr(f"pathways_lm.{target}", lambda *arguments, **options: pytest.fail("began to compile"))


def figures(out: str) -> dict[str, float]:
    """Of what is printed, each number by its name."""
    words = [line.split() for line in out.splitlines()]
    return {line[0]: float(line[1].replace(",", "")) for line in words if len(line) == 2}


def by_numpy(run, text: str) -> np.ndarray:
    """Log-probabilities of a text shorter than the context, from the logits."""
    trained = load(str(run))
    ids = trained.vocabulary.encode(text)
    tokens = np.array([[0, *ids[:-1]]], np.int32)
    call = jax.jit(lambda params, batch: trained.model.bind(params)(batch).logits_BLV)
    logits = np.asarray(call(trained.params, Batch(tokens, tokens)), np.float64)[0]
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(ids)), ids]


def test_perplexity_of_a_text(undisturbed, files, capfd):
    assert main(["evaluate", str(undisturbed), "--perplexity", f"{files}/text.txt", "--out", f"{files}/out"]) == 0
    found = figures(capfd.readouterr().out)
    whole = -load(str(undisturbed)).score(TEXT).total
    assert found["step"] == 60
    assert found["bytes"] == len(TEXT)
    assert found["words"] == len(TEXT.split()) + 1
    assert found["loss"] == pytest.approx(whole / found["tokens"], abs=1e-4)
    assert found["bits_per_byte"] == pytest.approx(whole / math.log(2) / len(TEXT), abs=1e-4)
    written = json.loads((files / "out").read_text())
    assert written["step"] == 60
    assert written["examples"] == [
        {
            "place": f"{files}/text.txt",
            "log_likelihood": pytest.approx(-whole, rel=1e-6),
            "tokens": found["tokens"],
            "words": found["words"],
            "bytes": len(TEXT),
        }
    ]
    # A longer past for each token does not make the text less likely, for a model that has learned something.
    assert main(["evaluate", str(undisturbed), "--perplexity", f"{files}/text.txt", "--stride", "4"]) == 0
    assert figures(capfd.readouterr().out)["loss"] < found["loss"]


def test_wikitext(undisturbed, files, capfd):
    """What is scored is put together; what it is divided by stands in the file."""
    (files / "wiki").write_text(" \n = Title = \n \n One , two @-@ three . \n")
    assert main(["evaluate", str(undisturbed), "--perplexity", f"{files}/wiki", "--wikitext"]) == 0
    found = figures(capfd.readouterr().out)
    total = by_numpy(undisturbed, "\n= Title =\n\nOne, two-three.\n").sum()
    # = Title = \n \n One , two @-@ three .
    assert found["adjusted_perplexity"] == pytest.approx(math.exp(-total / 11), rel=1e-3)


def test_lambada(undisturbed, files, capfd):
    assert main(["evaluate", str(undisturbed), "--lambada", f"{files}/passages.jsonl"]) == 0
    found = figures(capfd.readouterr().out)
    total = by_numpy(undisturbed, "the statement")[-len(tail(undisturbed, " statement")) :].sum()
    total += by_numpy(undisturbed, "is a program")[-len(tail(undisturbed, " program")) :].sum()
    assert found["perplexity"] == pytest.approx(math.exp(-total / 2), rel=1e-3)
    assert found["passages"] == 2


def tail(run, word: str) -> list[int]:
    return load(str(run)).vocabulary.encode(word)


def test_ranking(undisturbed, files, capfd):
    arguments = ["--file", f"{files}/questions.jsonl", "--template", f"{files}/template.json", "--limit", "4"]
    assert main(["evaluate", str(undisturbed), *arguments, "--out", f"{files}/out"]) == 0
    found = figures(capfd.readouterr().out)
    assert set(found) == {"step", "acc", "acc_norm", "acc_bytes", "acc_tokens", "examples"}
    assert found["examples"] == 4
    for number, example in enumerate(json.loads((files / "out").read_text())["examples"]):
        assert example["place"] == f"{files}/questions.jsonl, line {number + 1}"
        for choice, total in zip(("yes", "no"), example["log_probs"], strict=True):
            asked = f"Question: Is {number} even?\nAnswer:"
            ours = by_numpy(undisturbed, f"{asked} {choice}")[len(tail(undisturbed, asked)) :].sum()
            assert total == pytest.approx(ours, abs=1e-4)


def test_written_answers(undisturbed, files, capfd):
    """By the model itself: greedy, so the same as `generate` writes."""
    arguments = ["--file", f"{files}/questions.jsonl", "--template", f"{files}/written.json", "--num-tokens", "6"]
    assert main(["evaluate", str(undisturbed), *arguments, "--limit", "2", "--out", f"{files}/out"]) == 0
    found = figures(capfd.readouterr().out)
    assert found["examples"] == 2 and 0 <= found["exact_match"] <= found["f1"] <= 1
    for example, record in zip(json.loads((files / "out").read_text())["examples"], QUESTIONS, strict=False):
        arguments = ["--prompt", record["q"], "--num-tokens", "6", "--temperature", "0"]
        assert main(["generate", str(undisturbed), *arguments]) == 0
        line = capfd.readouterr().out.removeprefix(record["q"]).split("\n")[0]
        assert example["written"] == line.strip()


def test_a_task(undisturbed, capfd):
    assert main(["evaluate", str(undisturbed), "--task", "arithmetic", "--limit", "3", "--num-tokens", "4"]) == 0
    assert capfd.readouterr().out.splitlines() == ["step 60", "arithmetic", "  accuracy  0.0000"]


def test_overlap(micro, undisturbed, files, write, capfd):
    """What stands in the corpus, and what does not."""
    page = sorted(micro.corpus.glob("*.txt"))[3].read_text().split()
    write(files / "texts.jsonl", [{"text": " ".join(page[:40])}, {"text": "no such thing as this " * 3}])
    assert main(["evaluate", str(undisturbed), "--perplexity", f"{files}/texts.jsonl", "--overlap", "5"]) == 0
    out = capfd.readouterr().out
    seen = [line.split()[-1] for line in out[out.index("seen in training") :].splitlines()[1:]]
    assert seen == ["1", "1"]


def test_score(undisturbed, tmp_path, capfd):
    """The same log-probabilities as numbers of JSON, as a line for each token, and as their sum."""
    text = "The statement é"
    expected = by_numpy(undisturbed, text)
    assert main(["score", str(undisturbed), "--text", text, "--text", "x", "--json"]) == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["text"], second["text"]) == (text, "x")
    assert first["log_probs"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert first["log_likelihood"] == pytest.approx(expected.sum(), abs=1e-4)
    assert first["ids"] == tail(undisturbed, text)
    (tmp_path / "lines.txt").write_text(f"{text}\n\nx\n")
    assert main(["score", str(undisturbed), "--file", f"{tmp_path}/lines.txt", "--tokens"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 + len(expected) + 1
    assert [float(line.split()[0]) for line in lines[: 1 + len(expected)]] == pytest.approx(
        [expected.sum(), *expected], abs=2e-4
    )
    assert main(["score", str(undisturbed), "--text", " statement é", "--context", "The", "--json"]) == 0
    after = json.loads(capfd.readouterr().out)
    assert after["log_probs"] == pytest.approx(expected[len(tail(undisturbed, "The")) :].tolist(), abs=1e-4)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--perplexity", "none.txt"], ["none.txt", "cannot be read"]),
        (["--perplexity", "bad.jsonl"], ["bad.jsonl, line 2", "no field 'text'"]),
        (["--perplexity", "bytes.txt"], ["bytes.txt, line 2", "not UTF-8"]),
        (["--perplexity", "empty.txt"], ["empty.txt", "holds no text"]),
        (["--perplexity", "text.txt", "--stride", "33"], ["a stride of 33 tokens must be from 1 to 32"]),
        (["--perplexity", "text.txt", "--stride", "0"], ["--stride must be at least 1, not 0"]),
        (["--perplexity", "text.txt", "--lambada", "text.txt"], ["--perplexity and --lambada", "one of them"]),
        (["--stride", "4"], ["--stride is for --perplexity"]),
        (["--perplexity", "text.txt", "--out", "none/out"], ["--out='", "cannot be written"]),
        (["--lambada", "text.txt"], ["text.txt, line 1", "more than the context of 32", "--truncate"]),
        (["--lambada", "word.txt"], ["word.txt, line 1", "several words"]),
        (["--lambada", "bad.jsonl"], ["bad.jsonl, line 2"]),
        (["--file", "questions.jsonl"], ["--file needs --template"]),
        (["--template", "template.json"], ["--template is for --file"]),
        (["--file", "bad.jsonl", "--template", "template.json"], ["bad.jsonl, line 1", "no field 'q'"]),
        (["--file", "questions.jsonl", "--template", "text.txt"], ["text.txt: not JSON"]),
        (["--file", "questions.jsonl", "--template", "template.json", "--shots", "5"], ["only 4 other examples"]),
        (["--file", "questions.jsonl", "--template", "template.json", "--shots", "-1"], ["--shots", "at least 0"]),
        (
            ["--file", "questions.jsonl", "--template", "template.json", "--shots", "4"],
            ["questions.jsonl, line 1", "more than the context of 32", "--truncate"],
        ),
        (
            ["--file", "questions.jsonl", "--template", "template.json", "--num-tokens", "4"],
            ["--num-tokens is for templates without 'choices'"],
        ),
        (
            ["--file", "questions.jsonl", "--template", "written.json", "--num-tokens", "40"],
            ["questions.jsonl, line 1", "leaves no room for 40 more in the context of 32"],
        ),
        (["--task", "arithmetik"], ["no task 'arithmetik'", "did you mean 'arithmetic'"]),
        (["--task", "python_docs"], ["'python_docs' has documents and no metrics"]),
        (["--task", "arithmetic", "--split", "test"], ["no split 'test'"]),
        (["--task", "arithmetic", "--shots", "2"], ["--shots is for --file"]),
    ],
)
def test_mistakes_of_evaluate(undisturbed, files, refused, flags, words):
    (files / "bad.jsonl").write_text('{"text": "a b"}\n{"txt": "c d"}\n')
    (files / "bytes.txt").write_bytes(b"a\n\xff\n")
    (files / "empty.txt").write_text("\n")
    (files / "word.txt").write_text("word\n")
    said = [
        f"{files}/{flag}" if flag.endswith((".txt", ".json", ".jsonl", "out")) and flag[0] != "-" else flag
        for flag in flags
    ]
    message = refused("evaluate", str(undisturbed), *said)
    assert all(word in message for word in words), message


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--text", ""], ["--text: there is no token to score"]),
        (["--text", "a\udcff"], ["--text", "not a character"]),
        (["--text", "a", "--stride", "2", "--context", "b"], ["--stride", "without --context"]),
        (["--text", "a", "--truncate"], ["--truncate is for --context"]),
        (["--text", "a", "--context", "many words " * 20], ["--text 'a'", "more than the context of 32", "--truncate"]),
        (["--text", "many words " * 20, "--context", "a", "--truncate"], ["more than the context of 32"]),
        (["--file", "none.txt"], ["none.txt: cannot be read"]),
    ],
)
def test_mistakes_of_score(undisturbed, refused, flags, words):
    message = refused("score", str(undisturbed), *flags)
    assert all(word in message for word in words), message


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], ["nothing to evaluate", "--tasks"]),
        (["--", "--model", "hf"], ["--model is said by the run folder"]),
    ],
)
def test_mistakes_of_harness(undisturbed, refused, line, words):
    message = refused("harness", str(undisturbed), *line)
    assert all(word in message for word in words), message


def test_harness(micro, undisturbed, tmp_path, monkeypatch):
    """The harness's own command line, on a task of ours."""
    pytest.importorskip("lm_eval")
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "x.jsonl").write_text('{"text": "The statement"}\n')
    described = {
        "task": "local_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/x.jsonl"}, "cache_dir": f"{tmp_path}/cache"},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    # JSON is YAML, too.
    (tmp_path / "x.yaml").write_text(json.dumps(described))
    run = ["harness", str(undisturbed), "--cpu-devices", "2", "--set", "mesh.tensor=2", "--"]
    done = micro.call(
        *run, "--tasks", "local_text", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text())["results"]["local_text"]["bits_per_byte,none"]
    expected = -by_numpy(undisturbed, "The statement").sum() / math.log(2) / len("The statement")
    assert found == pytest.approx(expected, rel=1e-5)
    assert "local_text" in done.stdout


def test_harness_without_such_a_task(undisturbed, monkeypatch, refused):
    harness = pytest.importorskip("lm_eval.__main__")

    def evaluate():
        raise ValueError("Tasks not found: helaswag")

    monkeypatch.setattr(harness, "cli_evaluate", evaluate)
    message = refused("harness", str(undisturbed), "--", "--tasks", "helaswag")
    assert message.endswith("Tasks not found: helaswag; those of your own need --include_path FOLDER")
