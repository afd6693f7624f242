"""Plans by the compilers of TPUs and GPUs, which need no such device."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pathways_lm import configure
from pathways_lm.config import DataConfig
from pathways_lm.data.objectives import abstract_batch, make_objective, raw_length
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import abstract_mesh
from pathways_lm.models.inventory import num_active_params, num_params
from pathways_lm.models.model import Model
from pathways_lm.plan.compilers import available
from pathways_lm.plan.decode import parse_decode
from pathways_lm.plan.machine import parse_machine
from pathways_lm.sharding import rules_of

needs_compilers = pytest.mark.skipif(
    not all(available(parse_machine(name)) for name in ("v5e:2x2", "h100:1x4")), reason="make compilers"
)


def experiment(path, *changes):
    return configure.load(f"configs/{path}.py", list(changes))


def plan(*arguments, where):
    """The command in a process of its own: a compiler of GPUs on the path of this one would complain in other tests."""
    command = [sys.executable, "-m", "pathways_lm", "plan", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)


def planned(path, machine, changes, where):
    """plan.json of a config."""
    config = str(Path(f"configs/{path}.py").resolve())
    done = plan(config, "--machine", machine, "--out", "plan", *(f"--set={each}" for each in changes), where=where)
    assert done.returncode == 0, done.stderr
    return json.loads((where / "plan" / "plan.json").read_text())


TWO_BY_TWO = ("mesh.data=2", "mesh.tensor=2", "model.unroll=1")
# The appendix counts scores of all pairs, as products of matrices make them and kernels do not.
PLAIN = (*TWO_BY_TWO, "model.attention=plain")
STEPS = {
    "palm": ("palm/tiny", PLAIN),
    "palm-fsdp": ("palm/tiny", (*PLAIN, "mesh.rules=fsdp", "train.microbatches=2")),
    "switch": ("switch/tiny", ("mesh.data=2", "mesh.expert=2", "model.unroll=1", "model.moe.dispatch=all_to_all")),
}


@needs_compilers
@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("palm", "h100:1x4"),
        ("palm-fsdp", "v5e:2x2"),
        ("switch", "h100:1x4"),
        pytest.param("palm", "v5e:2x2", marks=pytest.mark.slow),
        pytest.param("palm-fsdp", "h100:1x4", marks=pytest.mark.slow),
        pytest.param("switch", "v5e:2x2", marks=pytest.mark.slow),
    ],
)
def test_a_step(name, machine, tmp_path):
    """Arithmetic by PaLM's appendix B, memory of the state by counting, exchanges by the axes that are there."""
    path, changes = STEPS[name]
    told = planned(path, machine, changes, tmp_path)
    cost = told["roofline"]
    config = experiment(path, *changes)
    model = Model(config.model, rules_of(config.mesh, abstract_mesh(config.mesh, 4)))
    tokens = config.data.batch_size * config.data.sequence_length
    if path == "palm/tiny":
        attention = 12 * config.model.num_layers * config.model.num_heads * config.model.head_dim
        expected = tokens * (6 * num_active_params(model) + attention * config.data.sequence_length) / 4
        assert told["model_flops"] == pytest.approx(expected)
        # Nothing is computed twice, and nothing but products is counted.
        assert cost["flops"] == pytest.approx(expected, rel=0.02)
        assert told["memory"]["parameters"] == pytest.approx(4 * num_params(model) / 4, rel=0.05)
    assert cost["unknown_loops"] == 0
    assert 0 < told["mfu"] <= told["hfu"] * 1.02 < 1
    assert told["memory"]["fits"]
    assert {axis for row in cost["traffic"] for axis in row["axes"]} == set(told["mesh"])
    kinds = {row["kind"] for row in cost["traffic"]}
    assert ("all-to-all" in kinds) or path == "palm/tiny"


@needs_compilers
@pytest.mark.parametrize(
    ("machine", "name", "products", "pairs"),
    [
        # Of 2 x 2 blocks of 512 x 512 three are visited; forward 2 products, backward 5 in one kernel.
        ("v5e:2x2", "splash", 2 + 5, 3 * 512 * 512),
        # Half and the diagonal; the backward kernel makes scores twice.
        ("h100:1x4", "triton", 2 + 7, 1024 * 1025 // 2),
    ],
)
def test_the_arithmetic_of_kernels(machine, name, products, pairs, tmp_path):
    """Which the program's text does not tell: as the papers count it, of the pairs that kernels visit."""
    shape = ("model.head_dim=64", "data.sequence_length=1024", "train.precision=bf16", "model.num_layers=2")
    changes = (*TWO_BY_TWO, *shape, "data.batch_size=4")
    told = planned("palm/tiny", machine, changes, tmp_path)
    assert told["attention"].startswith(f"attention: {name} (")
    config = experiment("palm/tiny", *changes)
    model = Model(config.model, rules_of(config.mesh, abstract_mesh(config.mesh, 4)))
    heads = config.model.num_heads * config.model.num_layers
    attention = 4 * 2 * products * pairs * heads * 64
    # Without the table that logits share, which is a product, too, but is looked up in once.
    others = 6 * num_active_params(model) * 4 * 1024
    # One head of keys is made on both devices of `tensor`.
    others += 6 * config.model.num_layers * 2 * config.model.embed_dim * 64 * 4 * 1024
    assert told["roofline"]["flops"] * 4 == pytest.approx(others + attention, rel=0.01)


@pytest.mark.parametrize(("text", "words"), [("64", "like 64x2048"), ("0x10", "like 64x2048")])
def test_a_decoding_step_that_is_none(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_decode(text)


@needs_compilers
@pytest.mark.parametrize("zero", [3, 0])
def test_a_decoding_step(tmp_path, zero):
    """Memory by counting: parameters in bf16, and keys and values of one head on every device of `tensor`.

    Cut parameters are gathered for every token, and it is said how they are not.
    """
    config = str(Path("configs/palm/tiny.py").resolve())
    changes = ("--set=mesh.data=2", "--set=mesh.tensor=2", "--set=train.precision=bf16", f"--set=mesh.zero={zero}")
    done = plan(config, "--machine", "h100:1x4", "--decode", "8x256", "--out", "plan", *changes, where=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "plan" / "decode.json").read_text())
    model = experiment("palm/tiny").model
    pairs = 2 * 2 * model.num_layers * 4 * model.num_kv_heads * 256 * model.head_dim
    # And where tokens stand, and the next slot.
    assert told["cache"] == pairs + 4 * 4 * 256 + 4
    assert told["cache"] + told["parameters"] < told["peak"] < told["capacity"]
    assert told["least_seconds"] <= told["step_seconds"]
    assert "at least" in done.stdout
    gathered = [each for each in told["roofline"]["traffic"] if each["kind"] == "all-gather" and "data" in each["axes"]]
    # Nothing is copied out of a stack of layers before it is multiplied with.
    assert zero == 3 or told["roofline"]["memory_bytes"] < 1.5 * (told["parameters"] + told["cache"])
    assert told["gathers"] == bool(gathered) == ("--set mesh.zero=0" in done.stdout) == (zero == 3)


@needs_compilers
def test_what_does_not_fit(tmp_path):
    """Exit code 1, and by how much."""
    changes = ["mesh.data=4", "data.batch_size=8", "model.remat=block"]
    config = str(Path("configs/palm/8b.py").resolve())
    done = plan(config, "--machine", "v5e:2x2", *(f"--set={each}" for each in changes), where=tmp_path)
    assert done.returncode == 1
    assert re.search(r"a device would need [\d.]+ GiB and has [\d.]+, [\d.]+ too little", done.stderr)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("objective", ["causal", "prefix", "span_corruption", "masked"])
def test_batches_without_a_corpus(objective):
    """What a batch looks like is what the objective makes."""

    class Words:
        size, eod_id = 400, 1

    data = DataConfig(objective=objective, extra_ids=100, sequence_length=128, batch_size=4)
    rows = np.full((data.batch_size, raw_length(data)), 7, np.int32)
    made = make_objective(data, Words())(rows, range(data.batch_size))
    told = abstract_batch(data)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) for batch in (made, told)]
    assert shapes[0] == shapes[1]


@needs_compilers
def test_the_command(tmp_path):
    config = str(Path("configs/palm/tiny.py").resolve())
    done = plan(config, "--machine", "v5e:2x2", "--set", "mesh.tensor=2", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MFU" in done.stdout
    folder = tmp_path / "runs" / "plans" / "palm-tiny@v5e-2x2"
    told = json.loads((folder / "plan.json").read_text())
    assert told["mesh"] == {"data": 2, "tensor": 2}
    page = (folder / "plan.html").read_text()
    assert "Exchanges" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machine", "h10:8x8"], "did you mean 'h100'"),
        (["--machine", "v5e:3x5"], "knows no v5e:3x5"),
        (["--machine", "v5e:2x2", "--set", "mesh.tensor=3"], "mesh.tensor=3"),
        (["--machine", "v5e:2x2", "--set", "mesh.data=2"], "takes 2 of 4 devices"),
    ],
)
@needs_compilers
def test_bad_input(arguments, words, tmp_path):
    done = plan(str(Path("configs/palm/tiny.py").resolve()), *arguments, where=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
