"""The maps of a prompt."""

import base64
import io
import re

import matplotlib.image
import numpy as np
import pytest

from pathways_lm.cli.inspect import look
from pathways_lm.language_model import load

SWITCH = """
from dataclasses import replace

from pathways_lm.config import MoEConfig
{rest}
    experiment = decoder()
    experts = MoEConfig(num_experts=4, dispatch="all_to_all", eval_capacity_factor=0.5, min_capacity=1)
    model = replace(experiment.model, shape="encoder_decoder", block="pre_norm", vocab_size=612, moe=experts)
    data = replace(experiment.data, objective="span_corruption", extra_ids=100)
    mesh, train = replace(experiment.mesh, expert=2), replace(experiment.train, num_steps=1)
    return replace(experiment, model=model, data=data, mesh=mesh, train=train)
"""
PROMPT = "The names are bound in the order."


@pytest.fixture(scope="module")
def pair(micro, tmp_path_factory):
    """An encoder-decoder with experts, after one step."""
    folder = tmp_path_factory.mktemp("pair")
    rest = micro.config.read_text().replace("def experiment()", "def decoder()") + "\n\ndef experiment():"
    (folder / "switch.py").write_text(SWITCH.format(rest=rest))
    assert micro.main("train", str(folder / "switch.py"), "--run", str(folder / "run"), "--cpu-devices=8") == 0
    return folder / "run"


def test_page_of_a_decoder(micro, trained, capfd):
    """One picture of all heads and one of each, for both layers; the path is printed."""
    assert micro.main("inspect", str(trained), "--prompt", PROMPT + " <b>$x$</b>") == 0
    assert capfd.readouterr().out == f"{trained / 'inspect.html'}\n"
    page = (trained / "inspect.html").read_text()
    assert page.count("<img") == 2 * (1 + 8)
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_pixels_are_the_weights(micro, trained):
    """The square root of a weight is how dark its pixel is; nothing is seen of what comes later."""
    assert micro.main("inspect", str(trained), "--prompt", PROMPT) == 0
    page = (trained / "inspect.html").read_text()
    looks, _ = look(load(str(trained), []), PROMPT, "")
    weights = looks[0].weights_LNTS
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not np.triu(weights, 1).any()
    images = re.findall(r'attention of layer (\d), head (\d)" src="data:image/png;base64,([^"]+)', page)
    assert [(int(layer), int(head)) for layer, head, _ in images] == [(i, n) for i in range(2) for n in range(8)]
    for layer, head, image in images:
        shade = matplotlib.image.imread(io.BytesIO(base64.b64decode(image)))
        np.testing.assert_allclose((1 - shade) ** 2, weights[int(layer), int(head)], atol=0.01)


def test_page_of_a_pair(micro, pair, capfd):
    """Attention within both towers and between them, and the experts of both."""
    target = pair / "maps.html"
    assert micro.main("inspect", str(pair), "--prompt", PROMPT, "--answer", "are", "--out", str(target)) == 0
    page = target.read_text()
    assert page.count("<img") == 3 * 2 * (1 + 8)
    for title in ("Encoder: attention", "Decoder: attention to the encoder", "Encoder: experts", "Decoder: experts"):
        assert f"<h2>{title}</h2>" in page
    trained = load(str(pair), [])
    looks, routes = look(trained, PROMPT, "are")
    T, S = 1 + len(trained.vocabulary.encode("are")), len(trained.vocabulary.encode(PROMPT)) + 1
    assert [one.weights_LNTS.shape for one in looks] == [(2, 8, S, S), (2, 8, T, T), (2, 8, T, S)]
    for one in looks:
        np.testing.assert_allclose(one.weights_LNTS.sum(-1), 1, rtol=1e-5)
    encoder, _ = routes
    assert encoder.layers == [1]
    # Half as many places as tokens: one expert a token, and some tokens have none.
    served = (encoder.gates_MTE > 0).sum(-1)
    assert set(served.flat) == {0, 1}
    assert page.count('class="unserved"') == sum((one.gates_MTE.sum(-1) == 0).sum() for one in routes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "x", "--answer", "y"], "--answer is what a decoder says of what an encoder read"),
        (["--prompt", "many words " * 50], "at most 32 can be shown"),
        (["--prompt", "x", "--out", "/nowhere/page.html"], "/nowhere/page.html cannot be written"),
    ],
)
def test_refused(undisturbed, refused, arguments, words):
    assert words in refused("inspect", str(undisturbed), *arguments)


def test_what_other_commands_say_of_a_pair(micro, pair, capfd):
    """It is loaded onto one device, writes what its decoder says, and has a loss, but no bits of a text's bytes."""
    assert load(str(pair), []).model.rules.mesh.size == 1
    assert micro.main("generate", str(pair), "--prompt", PROMPT, "--num-tokens", "3") == 0
    assert capfd.readouterr().out.startswith(PROMPT)
    assert micro.main("evaluate", str(pair)) == 0
    scores = capfd.readouterr().out
    assert "nats/token" in scores and "bits/byte" not in scores
    assert micro.main("report", str(pair)) == 0
    assert "bits per byte" not in (pair / "report.html").read_text()
