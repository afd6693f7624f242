"""What compiled steps exchange, against the papers' formulas: kinds equal, bytes within 2%.

The compiler is that of A100s, without one. Numbers are what one device puts in, per step, in bytes.
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from pathways_lm.config import DataConfig, Experiment, MeshConfig, ModelConfig, MoEConfig, OptimizerConfig, TrainConfig
from pathways_lm.plan.compilers import available
from pathways_lm.plan.machine import parse_machine

MACHINE = "a100:1x8"
L, D, F, V, B, S = 4, 512, 2048, 1024, 16, 128
MODEL = ModelConfig(
    num_layers=L,
    embed_dim=D,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    mlp_dim=F,
    vocab_size=V,
    block="pre_norm",
    activation="gelu",
    norm_scale=False,
)
LAYER = 4 * D * D + 2 * D * F
PSI = L * LAYER + V * D
"""Parameters."""
BF16, FP32 = 2, 4
BSH = B * S * D * BF16
MOE = MoEConfig(num_experts=8, every=2, dispatch="all_to_all", capacity_factor=1.0)

pytestmark = pytest.mark.skipif(not available(parse_machine(MACHINE)), reason="needs make compilers")


def small(model=MODEL, microbatches=1, **mesh):
    return Experiment(
        name="small",
        model=model,
        mesh=MeshConfig(**{"data": 1, **mesh}),
        data=DataConfig(sequence_length=S, batch_size=B),
        optimizer=OptimizerConfig(name="adamw"),
        train=TrainConfig(num_steps=10, precision="bf16", microbatches=microbatches),
    )


STEPS = {
    "megatron": small(tensor=8, rules="tensor_parallel", zero=0),
    "sequence parallel": small(tensor=8, rules="sequence_parallel", zero=0),
    "data parallel": small(data=8, zero=0),
    "data parallel, two microbatches": small(data=8, zero=0, microbatches=2),
    "zero 1": small(data=8, zero=1, microbatches=2),
    "zero 2": small(data=8, zero=2, microbatches=2),
    "zero 3": small(data=8, zero=3),
    "palm": small(data=4, tensor=2, zero=3),
    "switch": small(replace(MODEL, moe=MOE), expert=8, zero=0),
    "pipeline": small(stage=4, data=2, zero=0, microbatches=8),
}
PLAN_ALL = f"""
import sys
from pathways_lm.cli import main
codes = [main(["plan", folder + "/small.py", "--machine", "{MACHINE}", "--out", folder]) for folder in sys.argv[1:]]
sys.exit(any(codes))
"""


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """Of each step {(kind, axes): (times, bytes put in)} of all that is more than a hundredth of the whole."""
    folders = {name: tmp_path_factory.mktemp("exchanged") for name in STEPS}
    for name, folder in folders.items():
        text = f"from pathways_lm.config import *\n\n\ndef experiment():\n    return {STEPS[name]!r}\n"
        (folder / "small.py").write_text(text)
    # In a process of its own, as a user's: in this one JAX has chosen its platforms.
    command = [sys.executable, "-c", PLAN_ALL, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def large(folder):
        rows = json.loads((folder / "plan.json").read_text())["roofline"]["traffic"]
        total = sum(row["operand_bytes"] for row in rows)
        return {
            (row["kind"], tuple(row["axes"])): (row["times"], row["operand_bytes"])
            for row in rows
            if row["operand_bytes"] > 0.01 * total
        }

    return {name: large(folder) for name, folder in folders.items()}


def assert_near(found, **expected):
    """`expected` is bytes by kind, of exchanges over the one axis that there is."""
    bytes_of = {kind.replace("-", "_"): put for (kind, _), (_, put) in found.items()}
    assert bytes_of.keys() == expected.keys()
    assert bytes_of == pytest.approx(expected, rel=0.02)


def test_megatron(exchanged):
    """Two all-reduces a layer forward and two backward (arXiv:1909.08053, section 3), one for embeddings and logits."""
    assert_near(exchanged["megatron"], all_reduce=(4 * L + 2) * BSH)


def test_sequence_parallel(exchanged):
    """Each all-reduce as a reduce-scatter and an all-gather (arXiv:2205.05198, section 4.2.2)."""
    found = exchanged["sequence parallel"]
    assert_near(found, reduce_scatter=(4 * L + 2) * BSH, all_gather=(4 * L + 2) * BSH / 8)


@pytest.mark.parametrize("name", ["data parallel", "data parallel, two microbatches"])
def test_data_parallel(exchanged, name):
    """Gradients are added once a step, whatever the microbatches: 2 Psi on a ring (arXiv:1910.02054, section 7.1)."""
    assert_near(exchanged[name], all_reduce=PSI * FP32)


def test_zero_1(exchanged):
    """Psi scattered and Psi gathered (arXiv:1910.02054, section 7.2.1), gathered in the type of the arithmetic."""
    assert_near(exchanged["zero 1"], reduce_scatter=PSI * FP32, all_gather=PSI * BF16 / 8)


def test_zero_2(exchanged):
    """Gradients are scattered as each microbatch ends, so that no device holds them all."""
    assert_near(exchanged["zero 2"], reduce_scatter=2 * PSI * FP32, all_gather=PSI * BF16 / 8)


def test_zero_3(exchanged):
    """3 Psi: gathered forward and backward, scattered (section 7.2.2). The tied table is used at both turns at once."""
    gathered = 2 * L * LAYER + V * D
    assert_near(exchanged["zero 3"], reduce_scatter=PSI * BF16, all_gather=gathered * BF16 / 8)


def test_palm(exchanged):
    """Weights gathered over data and their gradients scattered; activations gathered and scattered over model twice.

    GSPMD's "2D finalized" (arXiv:2105.04663, section 5.2; PaLM, section 4).
    """
    found = exchanged["palm"]
    own = B // 4 * S * D * BF16
    weights = (2 * L * LAYER + V * D) / 2 * BF16
    assert {key: put for key, (_, put) in found.items()} == pytest.approx(
        {
            ("all-gather", ("data",)): weights / 4,
            ("reduce-scatter", ("data",)): PSI / 2 * BF16,
            ("all-gather", ("tensor",)): (4 * L + 2) * own / 2,
            ("reduce-scatter", ("tensor",)): (4 * L + 2) * own,
        },
        rel=0.02,
    )


def test_switch(exchanged):
    """Two all-to-alls forward and two backward, of [experts, capacity, d] (arXiv:2101.03961, section 5.5)."""
    found = exchanged["switch"]
    places = B // 8 * S  # Of all experts together on a device, with capacity factor 1.
    times, put = found["all-to-all", ("expert",)]
    assert times == 4 * (L // 2)
    assert put == pytest.approx(4 * (L // 2) * places * D * BF16, rel=0.02)


def test_pipeline(exchanged):
    """b s h for each boundary, direction and microbatch (arXiv:2104.04473, section 3.2), in the bubble, too."""
    stages, microbatches = 4, 8
    found = exchanged["pipeline"]
    times, put = found["collective-permute", ("stage",)]
    assert times == 2 * (microbatches + stages - 1)
    assert put == pytest.approx(times * BSH / microbatches / 2, rel=0.02)
    # The gradients of stages' own layers are added over data once, not at every tick.
    added = L // stages * LAYER + V * D / stages
    assert found["all-reduce", ("data",)][1] == pytest.approx(added * FP32, rel=0.02)
