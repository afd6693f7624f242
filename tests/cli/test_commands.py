"""What the commands print when all is well."""

import json
import subprocess
import sys

import pytest

from pathways_lm import __version__
from pathways_lm.config import from_dict
from pathways_lm.configure import load


def test_config_prints_what_is_read_back(micro, capfd):
    assert micro.main("config", str(micro.config), "--set", "model.num_layers=7", "--set", "train.precision=bf16") == 0
    out, err = capfd.readouterr()
    experiment = from_dict(json.loads(out))
    assert experiment == load(str(micro.config), ["model.num_layers=7", "train.precision=bf16"])
    assert experiment.model.num_layers == 7
    assert err == ""


def test_version():
    done = subprocess.run(
        [sys.executable, "-m", "pathways_lm", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{__version__}\n"


def test_a_run_folder(micro, undisturbed):
    """One row a step, in order; validation and samples at 0, every 20 and the end; two checkpoints with their seals."""
    rows = micro.rows(undisturbed)
    by_kind = {kind: [row["step"] for row in rows if row["kind"] == kind] for kind in ("train", "validation")}
    assert by_kind == {"train": list(range(1, 61)), "validation": [0, 20, 40, 60]}
    assert [row["step"] for row in rows if row.get("what") == "checkpoint"] == [10, 20, 30, 40, 50, 60]
    samples = [json.loads(line) for line in (undisturbed / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0, 20, 40, 60]
    assert micro.steps(undisturbed) == [50, 60]
    assert {path.stem for path in (undisturbed / "seals").iterdir()} >= {"50", "60"}
    losses = micro.losses(undisturbed)
    assert losses[60] < losses[1] - 0.5
    assert from_dict(json.loads((undisturbed / "config.json").read_text())) == load(str(micro.config))


def test_report(micro, trained, capfd):
    (trained / "report.html").unlink()
    assert micro.main("report", str(trained)) == 0
    assert capfd.readouterr().out == f"{trained / 'report.html'}\n"
    assert "<html" in (trained / "report.html").read_text()


def test_evaluate_repeats_the_last_validation(micro, undisturbed, capfd):
    assert micro.main("evaluate", str(undisturbed)) == 0
    out, err = capfd.readouterr()
    last = [row for row in micro.rows(undisturbed) if row["kind"] == "validation"][-1]
    assert f"{last['loss']:.4f} nats/token" in out
    assert f"{last['bits_per_byte']:.4f} bits/byte" in out
    assert "gzip -9" in out
    assert err == ""


@pytest.mark.parametrize("mesh", ["mesh.data=1", "mesh.data=8", "mesh.tensor=4"])
def test_generate_on_every_mesh(micro, undisturbed, capfd, mesh):
    """Greedy text is the same on one device and on many."""
    arguments = ["generate", str(undisturbed), "--prompt", "The ", "--num-tokens", "8", "--temperature", "0"]
    assert micro.main(*arguments) == 0
    expected, err = capfd.readouterr()
    assert (expected[:4], expected[-1], err) == ("The ", "\n", "")
    assert micro.main(*arguments, "--set", mesh) == 0
    assert capfd.readouterr().out == expected


def test_generate_several_prompts(micro, undisturbed, capfd):
    """Each stands with its own continuation, which is that of the prompt alone."""
    prompts, options = ("The ", "def ", "a much longer prompt "), ["--num-tokens", "6", "--temperature", "0"]
    alone = []
    for prompt in prompts:
        micro.main("generate", str(undisturbed), "--prompt", prompt, *options)
        alone.append(capfd.readouterr().out)
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert micro.main("generate", str(undisturbed), *flags, *options) == 0
    assert capfd.readouterr().out == "".join(f"{text}{'-' * 80}\n" for text in alone)


def test_draws_follow_the_seed(micro, undisturbed, capfd):
    texts = []
    for seed in ("1", "1", "2"):
        micro.main("generate", str(undisturbed), "--prompt", "The ", "--num-tokens", "12", "--seed", seed)
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
