"""Which attention is chosen where, and what is said of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pathways_lm import configure
from pathways_lm.config import MeshConfig, ModelConfig
from pathways_lm.data.objectives import abstract_batch
from pathways_lm.errors import ConfigError
from pathways_lm.kernels import choice
from pathways_lm.kernels.choice import Asked, choose, scores_bytes
from pathways_lm.mesh import AXES, abstract_mesh, make_mesh
from pathways_lm.models.attentions import attentions, told
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules

CONFIG = ModelConfig(num_layers=2, embed_dim=128, num_heads=4, head_dim=128, mlp_dim=256, vocab_size=260)
SHORT, LONG = Asked(8, 256, 256), Asked(8, 4096, 4096)


@pytest.fixture(params=["cpu", "tpu", "gpu"])
def platform(request, monkeypatch):
    monkeypatch.setattr(choice, "platform_of", lambda mesh: request.param)
    return request.param


def on(ring=False, **axes):
    mesh = abstract_mesh(MeshConfig(**{"data": 1, **axes}), 8)
    return make_rules("palm_2d", mesh, ring=ring)


@pytest.mark.parametrize(
    ("changes", "short", "long"),
    [
        ({}, {"cpu": "plain", "tpu": "splash", "gpu": "cudnn"}, {"cpu": "blocked", "tpu": "splash", "gpu": "cudnn"}),
        ({"packed": True}, *[{"tpu": "splash", "gpu": "triton"}] * 2),
        ({"relative": True}, {}, {}),
        ({"prefix": True}, {}, {}),
        ({"gapless": False}, {}, {}),
        ({"half": False}, *[{"tpu": "splash", "gpu": "triton"}] * 2),
        ({"keys": 250}, *[{"gpu": "cudnn"}] * 2),
        ({"drops": True}, {}, dict.fromkeys(("cpu", "tpu", "gpu"), "plain")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_auto(platform, changes, short, long):
    """A kernel where it serves; else scores that are held while they are few, and then tiles, unless weights drop."""
    for asked, expected, otherwise in ((SHORT, short, "plain"), (LONG, long, "blocked")):
        found = choose(CONFIG, on(), asked._replace(**changes))
        assert found.name == expected.get(platform, otherwise)
        assert found.why


@pytest.mark.parametrize(
    ("platform_name", "attention", "asked", "config", "words"),
    [
        ("cpu", "splash", SHORT, {}, "a kernel of TPUs, and these devices are cpu"),
        ("tpu", "cudnn", SHORT, {}, "a kernel of NVIDIA GPUs"),
        ("tpu", "splash", SHORT._replace(relative=True), {}, "relative positions"),
        ("tpu", "splash", SHORT._replace(prefix=True), {}, "prefixes"),
        ("tpu", "splash", SHORT._replace(queries=500), {}, "a length of 500 is not a multiple of 128"),
        ("tpu", "splash", SHORT, {"head_dim": 48}, "model.head_dim=48"),
        ("tpu", "splash", SHORT._replace(drops=True), {}, "model.dropout"),
        ("cpu", "blocked", SHORT._replace(drops=True), {}, "model.dropout"),
        ("gpu", "cudnn", SHORT._replace(half=False), {}, "train.precision is fp32"),
        ("gpu", "cudnn", SHORT._replace(packed=True), {}, "documents"),
        ("gpu", "cudnn", SHORT, {"head_dim": 256}, "model.head_dim=256"),
        ("gpu", "triton", SHORT, {"head_dim": 96}, "model.head_dim=96"),
        ("gpu", "triton", SHORT, {"window": 10}, "model.window"),
        ("gpu", "triton", SHORT._replace(keys=128), {}, "an encoder's output"),
        ("tpu", "triton", SHORT, {}, "a kernel of NVIDIA GPUs"),
    ],
)
def test_named_ones(platform_name, attention, asked, config, words, monkeypatch):
    """One line that says why not, in training; elsewhere what `auto` would take."""
    monkeypatch.setattr(choice, "platform_of", lambda mesh: platform_name)
    config = replace(CONFIG, attention=attention, **config)
    with pytest.raises(ConfigError, match=rf"model.attention='{attention}' cannot serve: .*{words}"):
        choose(config, on(), asked, strict=True)
    assert choose(config, on(), asked).name == choose(replace(config, attention="auto"), on(), asked).name


def test_sequences_on_several_devices():
    gathered, ring = on(context=2), on(context=2, ring=True)
    assert choose(CONFIG, gathered, LONG).name == "plain"
    assert choose(CONFIG, ring, SHORT).name == "blocked"
    for rules, attention, words in ((gathered, "blocked", "gather"), (ring, "plain", "ring")):
        with pytest.raises(ConfigError, match=words):
            choose(replace(CONFIG, attention=attention), rules, LONG, strict=True)


def test_scores_of_a_device():
    """[rows, heads, queries, keys] in fp32, over what they are cut along."""
    assert scores_bytes(on(), LONG, 4) == 4 * 8 * 4 * 4096**2
    assert scores_bytes(on(data=2, context=2, tensor=2), LONG, 4) == 4 * 8 * 4 * 4096**2 / 8


def test_platform_is_that_of_the_mesh():
    assert choice.platform_of(make_mesh(MeshConfig(data=1))) == "cpu"
    for name, platform in (("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")):
        devices = SimpleNamespace(flat=[SimpleNamespace(platform=name)])
        assert choice.platform_of(SimpleNamespace(devices=devices)) == platform


@pytest.mark.parametrize(
    ("path", "changes", "expected"),
    [
        ("palm/tiny", [], {"decoder": "plain"}),
        ("palm/tiny", ["data.sequence_length=4096", "train.microbatches=1"], {"decoder": "blocked"}),
        ("t5/tiny", ["model.dropout=0"], {"encoder": "plain", "decoder": "plain", "cross": "plain"}),
        ("t5/tiny", ["model.attention=blocked", "model.dropout=0"], dict.fromkeys(("encoder", "decoder"), "blocked")),
    ],
)
def test_what_training_says(path, changes, expected):
    experiment = configure.load(f"configs/{path}.py", changes)
    model = Model(experiment.model, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    found = attentions(model, abstract_batch(experiment.data), experiment.train.microbatches, half=False)
    assert {name: found[name].name for name in expected} == expected
    line = told(found)
    assert line.startswith("attention: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("kind", "half", "name"), [("v3", True, "plain"), ("v3", False, "splash"), ("v4", True, "splash")]
)
def test_kernels_do_not_multiply_bf16_on_old_tpus(kind, half, name):
    """Mosaic refuses them on v3."""
    device = SimpleNamespace(device_kind=f"TPU {kind}")
    rules = replace(on(), mesh=SimpleNamespace(devices=np.array([device]), axis_names=AXES, shape=on().mesh.shape))
    assert choose(CONFIG, rules, SHORT._replace(half=half), platform="tpu").name == name


@pytest.mark.parametrize(
    ("capability", "head_dim", "name"),
    [
        ("8.0", 128, "cudnn"),
        ("8.0", 256, "triton"),
        ("9.0", 256, "cudnn"),
        ("9.0", 264, "plain"),
        ("10.0", 256, "triton"),
    ],
)
def test_head_sizes_of_cudnn(capability, head_dim, name):
    """Its release notes: 256 forward and backward on Hopper, elsewhere 128."""
    device = SimpleNamespace(device_kind="NVIDIA", compute_capability=capability)
    rules = replace(on(), mesh=SimpleNamespace(devices=np.array([device]), axis_names=AXES, shape=on().mesh.shape))
    assert choose(replace(CONFIG, head_dim=head_dim), rules, SHORT, platform="gpu").name == name
