"""What is told of a trace: of events and paths written by hand, and of a small run."""

import json
from pathlib import Path

import pytest

from pathways_lm.cli import main
from pathways_lm.config import TrainConfig
from pathways_lm.errors import ConfigError
from pathways_lm.report.profile import add_up, innermost, own_time, profile_of
from pathways_lm.train.profile import instruction_scopes

PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main.1 (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %fusion.3 = f32[8]{0} fusion(%p), kind=kLoop, calls=%c, metadata={op_name="jit(step)/gradients/jvp(mlp)/dot" stack=1}
  ROOT dot.4 = f32[8]{0} dot(%p, %fusion.3), metadata={op_type="dot" op_name="jit(step)/optimizer/mul"}
}
"""


def test_scopes_of_a_program():
    assert instruction_scopes(PROGRAM) == {
        "fusion.3": "jit(step)/gradients/jvp(mlp)/dot",
        "dot.4": "jit(step)/optimizer/mul",
    }


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("jit(step)/gradients/transpose(jvp(mlp))/dot_general", "mlp"),
        ("jit(step)/gradients/jvp()/while/body/attention/norm/mul", "norms"),
        ("jit(step)/gradients/div", "gradients, the rest"),
        ("jit(step)/my_mlp_2/div", "all else"),
    ],
)
def test_the_innermost_scope_counts(path, told):
    assert innermost(path) == told


def test_a_loop_does_not_count_its_body_twice():
    """`while` from 0 to 100 with bodies of 30 and 40, in the second of which 5 are another's; then one alone."""
    events = [("body", 50, 90), ("while", 0, 100), ("inner", 60, 65), ("body", 10, 40), ("alone", 100, 103)]
    spent = {}
    for name, own in own_time(events):
        spent[name] = spent.get(name, 0) + own
    assert spent == {"while": 30, "body": 65, "inner": 5, "alone": 3}


def test_parts_of_a_step():
    scopes = {
        "a": "jit(step)/gradients/jvp(mlp)/dot",
        "b": "jit(step)/gradients/transpose(jvp(mlp))/dot",
        "c": "jit(step)/optimizer/mul",
    }
    profile = add_up({"a": 2.0, "b": 4.0, "c": 2.0, "of another program": 9.0}, scopes, steps=2)
    assert [(part.scope, part.forward, part.backward, part.share) for part in profile.parts] == [
        ("mlp", 1.0, 2.0, 0.75),
        ("optimizer", 1.0, 0.0, 0.25),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("3", "first step and the one behind"),
        ("0:3", "first step and the one behind"),
        ("5:5", "first step and the one behind"),
        ("a:b", "first step and the one behind"),
        ("-1:3", "first step and the one behind"),
        ("8:12", "train.num_steps=10"),
    ],
)
def test_steps_that_cannot_be(text, told):
    with pytest.raises(ConfigError, match=f"train.profile_steps='{text}'.*{told}"):
        TrainConfig(num_steps=10, profile_steps=text)


def test_steps_of_a_range():
    assert list(TrainConfig(num_steps=12, profile_steps="10:13").profiled) == [10, 11, 12]
    assert not TrainConfig(num_steps=12).profiled


def test_a_traced_run(tmp_path, capsys):
    """Its report says where the time went: shares add up, and the parts are those of the model."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of a text that is long enough\n" for number in range(4000)))
    run = tmp_path / "run"
    small = {
        "model": {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "head_dim": 32, "mlp_dim": 128, "vocab_size": 512},
        "data": {"files": str(text), "sequence_length": 32, "batch_size": 4, "cache_dir": str(tmp_path / "cache")},
        "train": {"num_steps": 4, "profile_steps": "2:4", "log_every": 1},
        "sample": {"num_tokens": 4},
    }
    changes = [f"--set={part}.{name}={value}" for part, fields in small.items() for name, value in fields.items()]
    assert main(["train", "configs/palm/tiny.py", "--run", str(run), "--set=mesh.data=1", *changes]) == 0
    profile = profile_of(run / "profile")
    assert profile.steps == 2
    assert sum(part.share for part in profile.parts) == pytest.approx(1)
    assert {"attention", "mlp", "optimizer", "embedding", "loss", "norms"} <= {part.scope for part in profile.parts}
    assert all(part.backward > 0 for part in profile.parts if part.scope in ("attention", "mlp"))
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in events if row.get("what") == "profile"] == [3]
    page = Path(run, "report.html").read_text()
    assert "Time of a step" in page and "optimizer" in page
