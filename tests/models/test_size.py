"""PaLM's sizes, from shapes alone: counts, golden inventories, and a program that does not grow with depth."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pathways_lm.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from pathways_lm.mesh import abstract_mesh
from pathways_lm.models.decoder import Model
from pathways_lm.models.inventory import as_json, as_text, inventory, num_params
from pathways_lm.sharding import make_rules
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state
from pathways_lm.train.step import make_step

# arXiv:2204.02311, table 1: layers, d_model, heads, billions of parameters. All have head size 256,
# d_ff = 4 d_model and 256,000 pieces. The third digit is from the formula below.
PAPER = {"8b": (32, 4096, 16, 8.632), "62b": (64, 8192, 32, 62.496), "540b": (118, 18432, 48, 540.356)}

GOLDEN = Path(__file__).parent.parent / "golden"
WRITE = "python tests/models/test_size.py --write"


def palm(size: str) -> Model:
    """On 256 x 8 devices without devices. The paper's 256 x 12 does not divide 256,000."""
    layers, d, heads, _ = PAPER[size]
    sizes = {"num_layers": layers, "embed_dim": d, "num_heads": heads, "head_dim": 256, "mlp_dim": 4 * d}
    config = ModelConfig(**sizes, vocab_size=256_000)
    return Model(config, make_rules("palm_2d", abstract_mesh(MeshConfig(data=256, tensor=8), 2048)))


def golden(model: Model) -> str:
    rows = [json.dumps(row, default=list) for row in as_json(model)]
    return '{\n"total": ' + str(num_params(model)) + ',\n"parameters": [\n' + ",\n".join(rows) + "\n]}\n"


@pytest.mark.parametrize("size", PAPER)
def test_parameter_count(size):
    layers, d, heads, billions = PAPER[size]
    queries, ff, vocab = heads * 256, 4 * d, 256_000
    formula = layers * (2 * d * queries + 2 * d * 256 + 3 * d * ff + d) + vocab * d + d
    assert num_params(palm(size)) == formula
    assert f"{formula / 1e9:.3f}" == f"{billions:.3f}"


@pytest.mark.parametrize("size", PAPER)
def test_inventory_is_as_it_was(size):
    """Most silent changes of a model show here. Where one is meant, run WRITE above and read the difference."""
    assert golden(palm(size)) == (GOLDEN / f"palm_{size}.json").read_text(), f"if this is meant: {WRITE}"


def test_inventory_as_text():
    model = palm("8b")
    lines = as_text(model).splitlines()
    assert len(lines) == len(inventory(model)) + 2
    assert lines[0].split() == ["path", "shape", "spec", "init", "std", "count"]
    assert lines[-1].split() == ["total", "8,632,012,800"]
    (table,) = [line for line in lines if line.startswith("embedding/table")]
    assert table.split() == ["embedding/table", "(256000,", "4096)", "P('tensor',", "'data')", "1", "1,048,576,000"]


def program(layers: int, remat: str) -> str:
    """A whole update, lowered: what the compiler is given."""
    sizes = {"embed_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 256, "vocab_size": 512}
    config = ModelConfig(num_layers=layers, remat=remat, **sizes)
    model = Model(config, make_rules("palm_2d", abstract_mesh(MeshConfig(data=2, tensor=4), 8)))
    schedule = make_schedule(OptimizerConfig(), 10)
    optimizer = make_optimizer(OptimizerConfig(), schedule, model)
    step = make_step(model, optimizer, schedule, TrainConfig(num_steps=10))
    tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=model.rules("batch", "length"))
    return jax.jit(step).trace(abstract_state(model, optimizer), tokens).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("remat", ["none", "block"])
def test_program_does_not_grow_with_depth(remat):
    assert len(program(32, remat)) <= 1.05 * len(program(2, remat))


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for name in PAPER:
        (GOLDEN / f"palm_{name}.json").write_text(golden(palm(name)))
