"""Every field is checked, told by name in one line, written out and read back, and used by something."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pathways_lm
from pathways_lm.config import (
    SECTIONS,
    DataConfig,
    Experiment,
    MeshConfig,
    MoEConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from pathways_lm.errors import ConfigError

REQUIRED = {
    "model": {"num_layers": 2, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32, "vocab_size": 300},
    "train": {"num_steps": 100},
}
KINDS = {**SECTIONS, "model.moe": MoEConfig}
FIELDS = [(section, item.name) for section, kind in KINDS.items() for item in dataclasses.fields(kind)]


def refusal(call, *args, **kwargs) -> str:
    """The one line of a ConfigError."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def section(name: str, /, **changes):
    return KINDS[name](**{**REQUIRED.get(name, {}), **changes})


def experiment(**sections) -> Experiment:
    values = {"name": "test", **{name: section(name, **changes) for name, changes in sections.items()}}
    return Experiment(**{"model": section("model"), "train": section("train"), **values})


def default(name: str, field: str):
    return getattr(section(name), field)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_wrong_types(name, field):
    """A number for text and text for a number; a boolean, a list and None for anything."""
    right = default(name, field)
    wrong = [[1], None, b"x", *([3, 3.0] if isinstance(right, str) else ["3", ""])]
    wrong += [3] if isinstance(right, bool) else [True]
    if isinstance(right, int) and not isinstance(right, bool):
        wrong += [2.0, 2.5]
    for value in wrong:
        assert refusal(section, name, **{field: value}).startswith(f"{name}.{field} must be ")


@pytest.mark.parametrize(("name", "field"), [pair for pair in FIELDS if isinstance(default(*pair), float)])
def test_not_finite(name, field):
    for value in (float("nan"), float("inf"), float("-inf")):
        assert refusal(section, name, **{field: value}) == f"{name}.{field} must be a finite number, not {value!r}"


@pytest.mark.parametrize(("name", "field"), [pair for pair in FIELDS if is_number(default(*pair))])
def test_negative(name, field):
    """No number of any section makes sense at -2; -1 fills a mesh axis, and nothing else."""
    assert refusal(section, name, **{field: -2}).startswith(f"{name}.{field} must be a")
    if name != "mesh" and (name, field) != ("model.moe", "offset"):
        assert f"{name}.{field}" in refusal(section, name, **{field: -1})


ZERO_IS_FINE = {
    ("mixing", "limit"),
    ("mixing", "smoothing"),
    ("train", "spike_threshold"),
    ("train", "checkpoints_kept_every"),
    ("train", "checkpoints_best"),
    ("train", "watchdog_seconds"),
    ("data", "seed"),
    ("train", "seed"),
    ("train", "checkpoints_kept_every"),
    ("train", "checkpoints_best"),
    ("train", "watchdog_seconds"),
    ("train", "z_loss"),
    ("optimizer", "beta1"),
    ("optimizer", "beta2"),
    ("optimizer", "weight_decay"),
    ("optimizer", "warmup_steps"),
    ("optimizer", "warmup_tokens"),
    ("optimizer", "decay_steps"),
    ("optimizer", "final_fraction"),
    ("optimizer", "update_clip"),
    ("optimizer", "muon_momentum"),
    ("optimizer", "clip_norm"),
    ("sample", "temperature"),
    ("sample", "top_k"),
    ("data", "extra_ids"),
    ("data", "targets_length"),
    ("data", "middle_rate"),
    ("data", "middle_spm_rate"),
    ("model", "num_encoder_layers"),
    ("model", "max_length"),
    ("model", "window"),
    ("model", "token_types"),
    ("model", "dropout"),
    ("model", "hidden_dropout"),
    ("mesh", "zero"),
    ("model.moe", "num_experts"),
    ("model.moe", "mlp_dim"),
    ("model.moe", "offset"),
    ("model.moe", "group_tokens"),
    ("model.moe", "jitter"),
    ("model.moe", "balance_loss"),
    ("model.moe", "router_z_loss"),
    ("model.moe", "dropout"),
}


@pytest.mark.parametrize(("name", "field"), [pair for pair in FIELDS if is_number(default(*pair))])
def test_zero(name, field):
    if (name, field) in ZERO_IS_FINE:
        assert getattr(section(name, **{field: 0}), field) == 0
    else:
        assert f"{name}.{field}" in refusal(section, name, **{field: 0})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("optimizer", "beta1", 1.0),
        ("optimizer", "beta2", 1.0),
        ("optimizer", "beta2_cap", 1.01),
        ("optimizer", "final_fraction", 1.01),
        ("optimizer", "muon_momentum", 1.0),
        ("sample", "top_p", 1.01),
        ("data", "validation_fraction", 0.6),
        ("data", "sequence_length", 1),
        ("train", "checkpoints_kept", 1),
        ("model", "vocab_size", 259),
        ("model", "head_dim", 7),
    ],
)
def test_other_ranges(name, field, value):
    message = refusal(section, name, **{field: value})
    assert f"{name}.{field}" in message
    assert str(value) in message


@pytest.mark.parametrize(
    ("name", "field", "typo", "nearest"),
    [
        ("optimizer", "name", "adafactr", "adafactor"),
        ("optimizer", "schedule", "cosin", "cosine"),
        ("model", "remat", "blocks", "block"),
        ("train", "precision", "bfloat16", "bf16"),
    ],
)
def test_choices(name, field, typo, nearest):
    message = refusal(section, name, **{field: typo})
    assert message == f"{name}.{field} has no choice '{typo}'; did you mean '{nearest}'?"


def test_choice_that_resembles_nothing():
    assert (
        refusal(OptimizerConfig, name="xyz")
        == "optimizer.name has no choice 'xyz'; known: adafactor, adam, adamw, lion, muon"
    )


@given(st.text())
def test_any_text_is_refused_in_one_line(text):
    refusal(OptimizerConfig, name=text + "?")


def test_whole_numbers_serve_as_numbers():
    assert OptimizerConfig(learning_rate=1).learning_rate == 1


def test_mesh_axes():
    assert "only one" in refusal(MeshConfig, data=-1, tensor=-1)
    assert MeshConfig(data=2, tensor=-1).tensor == -1
    assert MeshConfig(zero=0).zero == 0


def test_microbatches_must_divide():
    message = refusal(experiment, data={"batch_size": 10}, train={"microbatches": 4})
    assert message == "data.batch_size=10 does not divide into train.microbatches=4"
    assert experiment(data={"batch_size": 12}, train={"microbatches": 4})


@pytest.mark.parametrize("schedule", ["rsqrt", "cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_steps", [100, 101])
def test_warm_up_must_leave_steps(schedule, warmup_steps):
    message = refusal(experiment, optimizer={"schedule": schedule, "warmup_steps": warmup_steps})
    assert message == f"optimizer.warmup_steps={warmup_steps} must be below train.num_steps=100"
    assert experiment(optimizer={"schedule": schedule, "warmup_steps": 99})


def test_warm_up_in_tokens():
    """A step of 8 sequences of 64 tokens has 512: 51,200 are the whole run of a hundred."""
    data = {"batch_size": 8, "sequence_length": 64}
    message = refusal(experiment, data=data, optimizer={"warmup_tokens": 51_200})
    assert message == ("optimizer.warmup_tokens=51200, 100 steps of 512 tokens, must be below train.num_steps=100")
    assert experiment(data=data, optimizer={"warmup_tokens": 51_199})
    message = refusal(OptimizerConfig, warmup_tokens=1, warmup_steps=2)
    assert "optimizer.warmup_steps=2 and optimizer.warmup_tokens=1" in message


def test_warm_up_ends_before_the_rate_falls():
    message = refusal(experiment, optimizer={"warmup_steps": 30, "hold_steps": 29})
    assert message.startswith("optimizer.warmup_steps=30 must not be above optimizer.hold_steps=29")
    assert experiment(optimizer={"warmup_steps": 30, "hold_steps": 30})


@pytest.mark.parametrize(
    ("parts", "cure"),
    [
        ((10, 49, 40), "are 99 steps of train.num_steps=100; optimizer.hold_steps=50 would fit"),
        ((10, 51, 40), "are 101 steps of train.num_steps=100; optimizer.hold_steps=50 would fit"),
        ((60, 1, 40), "are 101 steps of train.num_steps=100; a shorter warm-up or decay would fit"),
    ],
)
def test_warm_up_stable_and_decay_must_make_up_the_run(parts, cure):
    names = ("warmup_steps", "hold_steps", "decay_steps")
    message = refusal(experiment, optimizer={"schedule": "wsd", **dict(zip(names, parts, strict=True))})
    assert message.endswith(cure)
    assert all(f"optimizer.{name}={value}" in message for name, value in zip(names, parts, strict=True))
    assert experiment(optimizer={"schedule": "wsd", "warmup_steps": 10, "hold_steps": 50, "decay_steps": 40})
    assert refusal(OptimizerConfig, schedule="wsd").startswith("optimizer.decay_steps is not set")


def test_adam_does_not_decay():
    message = refusal(OptimizerConfig, name="adam", weight_decay=0.1)
    assert message == "optimizer.weight_decay=0.1 must be 0 with optimizer.name='adam'; 'adamw' is Adam that decays"
    assert OptimizerConfig(name="adam", weight_decay=0)


@pytest.mark.parametrize("name", ["", "a/b", "/tmp/x", "..", "."])
def test_name_is_a_folder(name):
    assert "name" in refusal(Experiment, name=name, model=section("model"), train=section("train"))


def test_sections_of_the_wrong_kind():
    message = refusal(Experiment, name="x", model=section("train"), train=section("train"))
    assert message.startswith("model must be a ModelConfig")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        section("model").num_layers = 3


experiments = st.builds(
    experiment,
    model=st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 1000),
            "head_dim": st.integers(1, 500).map(lambda half: 2 * half),
            "norm_epsilon": st.floats(1e-30, 1e30),
            "remat": st.sampled_from(["none", "attention", "block"]),
        }
    ),
    data=st.fixed_dictionaries({"files": st.text(), "validation_fraction": st.floats(1e-9, 0.5)}),
    mesh=st.fixed_dictionaries({"data": st.integers(1, 9), "tensor": st.integers(1, 9) | st.just(-1)}),
    optimizer=st.fixed_dictionaries({"learning_rate": st.floats(1e-30, 1e30), "name": st.just("adamw")}),
    sample=st.fixed_dictionaries({"prompt": st.text(), "temperature": st.floats(0, 1e30)}),
)


@given(experiments)
def test_written_and_read_back(original):
    """Through JSON, as config.json holds it, with every bit of every number."""
    values = to_dict(original)
    assert set(values) == {"name", *SECTIONS}
    assert from_dict(json.loads(json.dumps(values))) == original


def test_reading_unknown_and_missing_fields():
    values = to_dict(experiment())
    assert refusal(from_dict, {**values, "trian": {}}) == "no field 'trian'; did you mean 'train'?"
    wrong = {**values, "model": {**values["model"], "num_layer": 2}}
    assert refusal(from_dict, wrong) == "no field 'model.num_layer'; did you mean 'num_layers'?"
    assert refusal(from_dict, {**values, "train": {}}) == "train.num_steps is not set, and it has no default"
    del values["name"]
    assert refusal(from_dict, values) == "name is not set, and it has no default"
    assert "num_layers" in refusal(from_dict, {})


@pytest.mark.parametrize("value", [5, None, [], "text", [["num_layers", 2]]])
def test_reading_a_section_that_is_none(value):
    """A config.json that someone edited."""
    assert "model" in refusal(from_dict, {**to_dict(experiment()), "model": value})


def test_defaults_are_palms():
    """arXiv:2204.02311, section 5.1."""
    optimizer = OptimizerConfig()
    assert (optimizer.name, optimizer.schedule) == ("adafactor", "rsqrt")
    assert (optimizer.learning_rate, optimizer.hold_steps) == (1e-2, 10_000)
    assert (optimizer.beta1, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 1.0, 1.0)
    assert TrainConfig(num_steps=1).z_loss == 1e-4
    assert DataConfig().sequence_length == 2048
    assert SampleConfig().temperature > 0


def test_every_field_is_read():
    """A field that nothing reads is a lie. By name, as an attribute, anywhere but where it is declared."""
    read = set()
    for file in Path(pathways_lm.__file__).parent.rglob("*.py"):
        if file.parent.name != "config":
            tree = ast.parse(file.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    unread = [f"{name}.{field}" for name, field in FIELDS if field not in read]
    assert unread == []


def test_kept_checkpoints_reach_back_over_a_spike():
    """Two intervals of 50 steps do not hold 100 steps, the patience of 5 and two rows of 10."""
    train = {"spike_threshold": 8.0, "spike_rewind": 100, "log_every": 10, "checkpoint_every": 50}
    values = to_dict(experiment())
    values["train"] = {**values["train"], **train, "checkpoints_kept": 3}
    assert "reach back 100 steps, and train.spike_rewind=100 needs 125; keep 4" in refusal(from_dict, values)
    values["train"]["checkpoints_kept"] = 4
    assert from_dict(values).train.checkpoints_kept == 4
