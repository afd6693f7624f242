"""Plans by formulas, against the papers' formulas and tables."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from pathways_lm import configure
from pathways_lm.cli import main
from pathways_lm.mesh import AXES, abstract_mesh
from pathways_lm.models.inventory import num_params
from pathways_lm.models.model import Model
from pathways_lm.plan import network
from pathways_lm.plan.analytic.arithmetic import moment_bytes
from pathways_lm.plan.analytic.memory import zero_bytes
from pathways_lm.plan.analytic.parameters import Cuts, neutral_model
from pathways_lm.plan.analytic.plan import analytic_plan, fitting_work, segments
from pathways_lm.plan.analytic.work import work_of
from pathways_lm.plan.compilers import available
from pathways_lm.plan.layout import Layout
from pathways_lm.plan.machine import parse_machine
from pathways_lm.sharding import rules_of, shard_bytes
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state


def experiment(path, *changes):
    return configure.load(f"configs/{path}.py", list(changes))


def step(path, machine, *changes):
    """The segments of a step."""
    where = parse_machine(machine)
    return segments(fitting_work(experiment(path, *changes), where), started=False)


def flops(path, machine, *changes):
    """Of products on all devices."""
    found = step(path, machine, *changes)
    devices = parse_machine(machine).num_devices
    return devices * sum(each.times * one.flops for each in found for one in each.arithmetic)


def sent(path, machine, *changes, kinds, scope=""):
    """Bytes that a device sends in a step."""
    return sum(
        each.times * one.sent_bytes
        for each in step(path, machine, *changes)
        for one in each.exchanges
        if one.kind in kinds and one.scope.startswith(scope)
    )


# PaLM 8B (arXiv:2204.02311, table 1), and the parameters of its products: all but the norms' scales.
LAYERS, EMBED, HEADS, HEAD, MLP, ROWS, LENGTH, BATCH = 32, 4096, 16, 256, 16384, 256_000, 2048, 512
OF_A_LAYER = 2 * EMBED * HEADS * HEAD + 2 * EMBED * HEAD + 3 * EMBED * MLP
PRODUCTS = LAYERS * OF_A_LAYER + ROWS * EMBED
ATTENTION = LAYERS * HEADS * HEAD * LENGTH
TOKENS = BATCH * LENGTH


PLAIN = ("model.attention=plain",)


@pytest.mark.parametrize("changes", [[], ["train.microbatches=4"], ["mesh.zero=1"], ["mesh.expert=2"]], ids=str)
def test_palms_arithmetic(changes):
    """Appendix B: 6 N + 12 L H Q T a token, to the digit, however the batch is cut."""
    assert flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=none", *changes) == TOKENS * (
        6 * PRODUCTS + 12 * ATTENTION
    )


def test_what_is_computed_twice():
    """Whole blocks: all of the forward pass but the two products that end a parallel block, which no gradient needs."""
    once = flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=none")
    ends = EMBED * (HEADS * HEAD + MLP)
    block = flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=block")
    assert block - once == TOKENS * (2 * LAYERS * (OF_A_LAYER - ends) + 4 * ATTENTION)
    # Attention: its weights, and not what they weigh.
    assert flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=attention") - once == TOKENS * 2 * ATTENTION


def test_heads_that_every_device_has():
    """Multi-query attention on a tensor axis of 4: its one key and value are made four times."""
    once = flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=none")
    shared = 6 * LAYERS * 2 * EMBED * HEAD
    assert flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=none", "mesh.tensor=4") - once == TOKENS * 3 * shared


@pytest.mark.parametrize(("length", "products"), [(2048, 2 + 5), (8192, 2 + 7)])
def test_the_arithmetic_of_a_kernel(length, products):
    """Scores of visited blocks of 512 x 512 alone, and again in the backward pass, once or in each of two kernels."""
    changes = [f"data.sequence_length={length}", "data.batch_size=64"]
    with_scores = flops("palm/8b", "v5p:4x4x4", *PLAIN, "model.remat=none", *changes)
    blocks = length // 512
    share = (blocks + 1) / (2 * blocks)
    attention = 2 * 64 * length * LAYERS * HEADS * HEAD * length
    for remat in ("none", "attention"):
        told = flops("palm/8b", "v5p:4x4x4", f"model.remat={remat}", *changes)
        assert told == pytest.approx(with_scores + (products * share - 6) * attention, rel=1e-12)


def test_a_kernel_keeps_no_scores():
    """And what is kept grows with the length alone, in bytes a token."""
    kept = []
    for length in (2048, 8192):
        changes = [f"data.sequence_length={length}", f"data.batch_size={512 * 2048 // length}", "model.remat=none"]
        plan = analytic_plan(experiment("palm/8b", *changes), parse_machine("v5p:4x4x4"))
        kept.append(dict(plan.memory.details)["activations kept for the backward pass"])
    assert kept[0] == kept[1]
    changes = ["model.remat=none", *PLAIN]
    plain = analytic_plan(experiment("palm/8b", *changes), parse_machine("v5p:4x4x4"))
    scores = 512 / 64 * HEADS * LENGTH**2 * (4 + 2) * LAYERS
    assert dict(plain.memory.details)["activations kept for the backward pass"] - kept[0] == pytest.approx(
        scores, rel=0.01
    )


def test_mfu_is_palms(tmp_path):
    plan = analytic_plan(experiment("palm/8b", "model.remat=none"), parse_machine("v5p:4x4x4"))
    per_token = 6 * num_params(neutral_model(experiment("palm/8b").model)) + 12 * ATTENTION
    assert plan.model_flops == TOKENS * per_token / 64
    assert plan.mfu == pytest.approx(TOKENS * per_token / 64 / plan.roofline.step_seconds / 459e12)


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zeros_memory(zero, gigabytes):
    """ZeRO (arXiv:1910.02054, figure 1): 7.5 billion parameters on 64 devices, Adam in fp16: 2 + 2 + 12 bytes each."""
    parts = zero_bytes(7.5e9, 7.5e9 / 64, zero, weight=2, gradient=2, state=12)
    assert sum(parts) / 1e9 == pytest.approx(gigabytes, abs=0.06)


MOMENTS = {
    "PaLM's": [],
    "factored": ["optimizer.factored=True", "optimizer.beta1=0"],
    "factored, with momentum in bf16": ["optimizer.factored=True", "optimizer.moments=bfloat16"],
    "AdamW": ["optimizer.name=adamw"],
    "Muon": ["optimizer.name=muon"],
}


@pytest.mark.parametrize("changes", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_moments(changes, zero):
    """The bytes of those that a training run has on a device, counters apart."""
    layout = ["mesh.data=2", "mesh.expert=4", "mesh.tensor=2", f"mesh.zero={zero}"]
    config = experiment("st_moe/tiny", *layout, *changes)
    rules = rules_of(config.mesh, abstract_mesh(config.mesh, 16))
    model = Model(config.model, rules)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 400), model)
    state = [leaf for leaf in jax.tree.leaves(abstract_state(model, optimizer).optimizer) if leaf.shape]
    work = work_of(config, Cuts(rules), fused=True)
    assert sum(work.cuts.layers(each) * moment_bytes(work, each) for each in work.parameters) == shard_bytes(state)


def test_what_factoring_saves():
    """T5 11B: a second moment of a thousandth and no momentum, where PaLM's Adafactor has 8 bytes a parameter."""
    machine = parse_machine("v4:4x4x4")
    changes = ["mesh.data=8", "mesh.tensor=8"]
    factored = analytic_plan(experiment("t5/11b", *changes), machine).memory
    whole = [*changes, "optimizer.factored=False", "optimizer.beta1=0.9"]
    memory = analytic_plan(experiment("t5/11b", *whole), machine).memory
    assert memory.optimizer == 2 * memory.parameters
    assert factored.optimizer < 0.01 * factored.parameters == 0.01 * memory.parameters


@pytest.mark.parametrize(("zero", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_zeros_communication(zero, times):
    """Section 7: a device sends 2 Psi, and 3 Psi where it gathers parameters forward and backward, but for the table
    of tokens, which is gathered once for both its uses."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter")
    changes = [f"mesh.zero={zero}", "model.remat=block", "train.precision=fp32"]
    found = sum(sent("palm/8b", "h100:8x8", *changes, kinds=kinds, scope=scope) for scope in ("gather ", "gradient"))
    scales = sent("palm/8b", "h100:8x8", "mesh.zero=3", "train.precision=fp32", kinds=("all-reduce",), scope="gradient")
    layers, table = LAYERS * OF_A_LAYER, ROWS * EMBED
    assert found - scales == pytest.approx(4 * 63 / 64 * (times * layers + 2 * table))


def test_megatrons_all_reduces():
    """arXiv:2104.04473, section 3.2: 8 b s h (t - 1) / t a layer and microbatch, two forward and two backward."""
    changes = ["mesh.tensor=4", "mesh.rules=tensor_parallel", "model.remat=none", "train.microbatches=4"]
    config = experiment("megatron/3d_7_5b", *changes)
    rows = config.data.batch_size / 4 / 32 * config.data.sequence_length * config.model.embed_dim
    found = step("megatron/3d_7_5b", "a100:16x8", *changes)
    layers = [one for each in found[:2] for one in each.exchanges if len(one.devices) == 4]
    assert [one.kind for one in layers] == ["all-reduce"] * 4
    assert sum(one.sent_bytes for one in layers) == 2 * 8 * rows * 3 / 4
    # Cut along the sequence, the same bytes as gathers and scatters (arXiv:2205.05198, section 4.2.2).
    changes[1] = "mesh.rules=sequence_parallel"
    found = step("megatron/3d_7_5b", "a100:16x8", *changes)
    layers = [one for each in found[:2] for one in each.exchanges if len(one.devices) == 4]
    assert sorted(one.kind for one in layers) == ["all-gather"] * 4 + ["reduce-scatter"] * 4
    assert sum(one.sent_bytes for one in layers) == 2 * 8 * rows * 3 / 4


def test_switchs_all_to_alls():
    """arXiv:2101.03961, section 5.5: [E, C, d_model] there and back, forward and backward."""
    changes = ["mesh.expert=16", "model.remat=none", "model.moe.dispatch=all_to_all"]
    found = step("switch/base", "v3:4x4", *changes)
    config = experiment("switch/base", *changes)
    groups = [one for one in found[0].exchanges + found[1].exchanges if one.kind == "all-to-all"]
    assert len(groups) == 4
    tokens = config.data.batch_size * config.data.sequence_length / 32
    assert {one.operand_bytes for one in groups} == {2 * 1.25 * tokens * config.model.embed_dim}


def test_bubble():
    """arXiv:2104.04473, section 2.2; MT-NLG's 35 stages with 240 microbatches idle for 14.2% of the ideal time."""
    sizes = tuple(35 if axis == "stage" else 1 for axis in AXES)
    layout = Layout(sizes, "palm_2d", zero=1, microbatches=240, remat="block", precision="bf16")
    assert layout.bubble == pytest.approx(0.142, abs=5e-4)
    assert dataclasses.replace(layout, chunks=3).bubble == pytest.approx(34 / 720)
    assert dataclasses.replace(layout, sizes=(1,) * 6).bubble == 0


@pytest.mark.parametrize("machine", ["v5p:4x4x4", "v5e-256", "v3:4x4", "v4-64x2", "h100:4x8", "v6e:4x4"])
def test_places_are_the_compilers(machine):
    """Devices lie on the mesh where they do on the machine that its compiler describes."""
    if not available(parse_machine(machine)):
        pytest.skip("make compilers")
    code = f"""if True:
        import jax; jax.config.update("jax_platforms", "cpu")
        from pathways_lm.config import MeshConfig
        from pathways_lm.mesh import lay_out
        from pathways_lm.plan.compilers import described_devices
        from pathways_lm.plan.machine import parse_machine
        from pathways_lm.plan.network import imagined_devices, places
        machine = parse_machine("{machine}")
        for tensor in (1, 4, 8):
            config = MeshConfig(pod=machine.pods, data=-1, tensor=tensor)
            laid = [lay_out(config, found) for found in (imagined_devices(machine), described_devices(machine))]
            assert (places(machine, laid[0]) == places(machine, laid[1])).all(), tensor
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler(tmp_path, monkeypatch, capsys):
    """The same figures, saying where they are from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathways_lm.cli.plan.available", lambda machine: False)
    config = str(network.__file__.removesuffix("pathways_lm/plan/network.py") + "configs/palm/8b.py")
    arguments = ["plan", config, "--machine", "v5p:4x4x4", "--set", "model.remat=block", "--price", "2"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "make compilers" in told.err
    assert "formulas, no compiler" in told.out
    assert "from formulas" in told.out
    plan = json.loads((tmp_path / "runs" / "plans" / "palm-8b@v5p-4x4x4" / "plan.json").read_text())
    assert plan["run_cost"] == pytest.approx(2 * 64 * plan["num_steps"] * plan["roofline"]["step_seconds"] / 3600)
    assert set(plan) == set(dataclasses.asdict(analytic_plan(experiment_of(config), parse_machine("v5p:4x4x4")))) | {
        *("tokens_per_second", "mfu", "hfu", "joules_per_token", "run_hours", "run_cost")
    }


def experiment_of(config):
    return configure.load(config, ["model.remat=block"])


def test_stages(monkeypatch):
    """A pipeline of 4 stages: a quarter of the layers each, idle for (p - 1) / m of their work, and b s h to the next
    stage and back for each microbatch."""
    config = experiment("palm/8b", "mesh.stage=4", "train.microbatches=8", "model.remat=block")
    where = parse_machine("v5p:4x4x4")
    plan = analytic_plan(config, where)
    assert plan.bubble == 3 / 8
    found = segments(fitting_work(config, where), started=False)
    staged = [each for each in found if each.staged]
    assert {each.times for each in staged if each.arithmetic} == {8 * LAYERS / 4}
    (handed,) = [each for each in found if each.name == "to the next stage"]
    activations = 2 * BATCH / 8 / 16 * LENGTH * EMBED
    assert [each.operand_bytes for each in handed.exchanges] == [activations] * 2
    assert handed.times == 8
    rest = plan.roofline.step_seconds - plan.roofline.bubble_seconds
    assert 0.25 * rest < plan.roofline.bubble_seconds < 3 / 8 * rest
    one = analytic_plan(experiment("palm/8b", "train.microbatches=8", "model.remat=block"), where)
    assert plan.memory.parameters == pytest.approx(one.memory.parameters, rel=0.01)


def test_sequences_that_go_round():
    """Ring attention on 4 devices: keys and values of the 3 others, and with their gradients twice as much back."""
    changes = ["mesh.context=4", "mesh.context_attention=ring", "model.remat=none", "data.batch_size=64"]
    moved = sent("palm/8b", "v5p:4x4x4", *changes, kinds=("collective-permute",))
    rows = 64 / 16 * LENGTH / 4
    assert moved == 3 * (1 + 2) * LAYERS * 2 * 2 * rows * HEAD
