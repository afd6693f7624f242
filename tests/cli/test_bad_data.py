"""Tasks, objectives and files that do not go together: one line, exit code 2, before anything is compiled."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("no_compile")

PAIRS = ("data.objective=text_to_text", "data.inputs=prefix")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.mixture=arithmetik"], ["data.mixture", "'arithmetik'", "did you mean 'arithmetic'"]),
        (["data.mixture=qqqq"], ["data.mixture", "known: arithmetic, ", "those of the t5 package"]),
        (["data.mixture=arithmetic"], ["task 'arithmetic' has pairs", "data.objective='text_to_text'", "python_docs"]),
        (["data.mixture=python_docs", *PAIRS], ["task 'python_docs' has documents", "arithmetic"]),
        (["data.mixture=glue_cola_v002", *PAIRS], ["glue/cola:1.0.0", "/none/glue/cola/1.0.0", "data.datasets_dir"]),
        (["data.objective=ul2"], ["data.inputs='encoder'", "not 'decoder'", "'prefix' or 'causal'"]),
        (["data.objective=ul2", "data.inputs=prefix"], ["data.extra_ids=0", "'ul2'", "needs"]),
        (["data.objective=fill_in_the_middle"], ["data.extra_ids=0", "needs 3"]),
        (["data.objective=masked"], ["model.shape='encoder'", "not 'decoder'"]),
        (["data.objective=infill"], ["data.objective", "'infill'"]),
        (["data.middle_rate=2"], ["data.middle_rate", "at most 1"]),
    ],
)
def test_settings(micro, refused, tmp_path, settings, words):
    message = refused(*micro.train(tmp_path / "run", *settings, "data.datasets_dir=/none"), "--set=data.files=")
    assert all(word in message for word in words), message
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.text_key=body"], ["a.jsonl, line 1", "no key 'body' (data.text_key)"]),
        (PAIRS, ["a.jsonl, line 1", "no key 'inputs' (data.inputs_key)"]),
        ((*PAIRS, "data.inputs_key=text"), ["a.jsonl, line 1", "no key 'targets' (data.targets_key)"]),
    ],
)
def test_keys(micro, refused, tmp_path, settings, words):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    message = refused(*micro.train(tmp_path / "run", *settings), f"--set=data.files={tmp_path}/a.jsonl")
    assert all(word in message for word in words), message
