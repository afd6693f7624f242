"""Every shipped config from shapes alone: golden inventories, and a program that does not grow with depth."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pathways_lm.config import MeshConfig, OptimizerConfig, TrainConfig
from pathways_lm.configure import load
from pathways_lm.mesh import abstract_mesh
from pathways_lm.models import presets
from pathways_lm.models.batch import Batch
from pathways_lm.models.inventory import as_json, as_text, inventory, num_active_params, num_params
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules, rules_of
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import abstract_state
from pathways_lm.train.step import make_step

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.py"))
GOLDEN = Path(__file__).parents[1] / "golden"
WRITE = "python tests/models/test_size.py --write"


def model_of(name: str) -> Model:
    """On a mesh without devices: as the config says, and four along data."""
    experiment = load(str(CONFIGS / f"{name}.py"))
    mesh = replace(experiment.mesh, data=4)
    abstract = abstract_mesh(mesh, 4 * mesh.stage * mesh.expert * mesh.tensor)
    return Model(experiment.model, rules_of(mesh, abstract))


def golden(model: Model) -> str:
    rows = [json.dumps(row, default=list) for row in as_json(model)]
    counts = f'"total": {num_params(model)},\n"active": {num_active_params(model)}'
    return "{\n" + counts + ',\n"parameters": [\n' + ",\n".join(rows) + "\n]}\n"


def golden_file(name: str) -> Path:
    return GOLDEN / f"{name.replace('/', '_')}.json"


@pytest.mark.parametrize("name", NAMES)
def test_inventory_is_as_it_was(name):
    """Most silent changes of a model show here. Where one is meant, run WRITE above and read the difference."""
    assert golden(model_of(name)) == golden_file(name).read_text(), f"if this is meant: {WRITE}"


def test_no_golden_file_is_left_over():
    assert sorted(GOLDEN.glob("*.json")) == sorted(golden_file(name) for name in NAMES)


@pytest.mark.parametrize(("name", "further"), [("palm/8b", 1), ("glam/8b_64e", 2)])
def test_inventory_as_text(name, further):
    """A heading, a row for each array, the total and, where it is another number, what is active."""
    model = model_of(name)
    lines = as_text(model).splitlines()
    assert len(lines) == 1 + len(inventory(model)) + further
    counts = (num_params(model), num_active_params(model))
    for line, count in zip(lines[-further:], counts[:further], strict=True):
        assert f"{count:,}" in line


def program(num_layers: int, remat: str) -> str:
    """What XLA is given of a whole training step."""
    config = presets.palm(
        num_layers=num_layers, embed_dim=64, num_heads=2, head_dim=32, mlp_dim=256, vocab_size=512, remat=remat
    )
    model = Model(config, make_rules("palm_2d", abstract_mesh(MeshConfig(data=1))))
    schedule = make_schedule(OptimizerConfig(), 1)
    optimizer = make_optimizer(OptimizerConfig(), schedule, model)
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32, sharding=model.rules("batch", None))
    step = make_step(model, optimizer, schedule, TrainConfig(num_steps=1))
    traced = jax.jit(step).trace(abstract_state(model, optimizer), Batch(tokens, tokens))
    return traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("remat", ["none", "block"])
def test_program_does_not_grow_with_depth(remat):
    assert len(program(32, remat)) <= 1.05 * len(program(2, remat))


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name in NAMES:
        golden_file(name).write_text(golden(model_of(name)))
