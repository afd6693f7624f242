"""Loss, every gradient and auxiliary loss of small models under many layouts, against one device, in fp32.

    python tests/test_every_layout.py --write

measures all of them, those with all six axes on 64 virtual devices included, and writes the table of docs/layouts.md.
"""

import sys
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from pathways_lm.compiler import compiler_options
from pathways_lm.config import MeshConfig, ModelConfig, MoEConfig, TrainConfig
from pathways_lm.mesh import make_mesh
from pathways_lm.models.batch import Batch
from pathways_lm.models.model import Model
from pathways_lm.sharding import on_mesh, rules_of
from pathways_lm.train.losses import routed_tokens, routing_loss
from pathways_lm.train.step import gradient_sums

LIMIT = 1e-5
ROWS, LENGTH = 16, 16
SMALL = {"num_layers": 4, "embed_dim": 48, "num_heads": 8, "num_kv_heads": 8, "head_dim": 6, "mlp_dim": 40}
SMALL |= {"vocab_size": 264}
DEEP = {**SMALL, "num_layers": 8}
# Some choices find no place, and the auxiliary losses weigh.
MOE = MoEConfig(num_experts=8, top_k=2, every=2, balance_loss=0.3, router_z_loss=0.1, capacity_factor=1.5)
FAMILIES = {
    "dense": ModelConfig(**SMALL),
    "MoE": ModelConfig(**DEEP, block="pre_norm", moe=MOE),
    "MoE, all-to-all": ModelConfig(**DEEP, block="pre_norm", moe=replace(MOE, dispatch="all_to_all")),
    "MoE, dropless": ModelConfig(**DEEP, block="pre_norm", moe=replace(MOE, dispatch="dropless")),
    "encoder-decoder": ModelConfig(
        **SMALL,
        shape="encoder_decoder",
        block="pre_norm",
        norm="rms",
        positions="relative",
        activation="geglu",
        tied_head=False,
    ),
}


@dataclass(frozen=True)
class Layout:
    """A family on a mesh."""

    family: str
    mesh: str
    """Fields of `MeshConfig`, as `name=value` with blanks between."""
    pipeline: str = "1f1b"
    microbatches: int = 1
    remat: str = "none"
    attention: str = "plain"

    @property
    def mesh_config(self) -> MeshConfig:
        fields = dict(each.split("=") for each in self.mesh.split())
        numbers = {name: int(value) if value.isdigit() else value for name, value in fields.items()}
        return MeshConfig(**{"data": 1, **numbers})

    def __str__(self) -> str:
        staged = f" {self.pipeline}" if "stage" in self.mesh else ""
        parts = f" microbatches={self.microbatches}" if self.microbatches > 1 else ""
        return f"{self.family}: {self.mesh}{staged}{parts}"


TP, SP = "rules=tensor_parallel", "rules=sequence_parallel"
RING = "context_attention=ring"
LAYOUTS = [
    # One axis.
    Layout("dense", "pod=8"),
    Layout("dense", "data=8 zero=0"),
    Layout("dense", "data=8 zero=1", microbatches=2),
    Layout("dense", "data=8 zero=2", microbatches=2),
    Layout("dense", "data=8 zero=3", microbatches=2),
    Layout("dense", f"tensor=8 {TP}"),
    Layout("dense", f"tensor=8 {SP}"),
    Layout("dense", "tensor=8"),
    Layout("dense", "context=8"),
    Layout("dense", f"context=8 {RING}"),
    Layout("dense", "stage=4", "gpipe", 4),
    Layout("dense", "stage=4", "1f1b", 8),
    Layout("dense", "stage=2 chunks=2", "gpipe", 4),
    Layout("dense", "stage=2 chunks=2", "1f1b", 4),
    Layout("MoE", "expert=8"),
    Layout("MoE", "stage=2", "1f1b", 4),
    Layout("encoder-decoder", "stage=4", "gpipe", 4),
    Layout("encoder-decoder", "stage=4", "1f1b", 4),
    # Two.
    Layout("dense", "pod=2 data=4"),
    Layout("dense", "data=4 tensor=2 rules=fsdp"),
    Layout("dense", f"data=4 tensor=2 zero=1 {TP}", microbatches=2),
    Layout("dense", f"data=2 context=4 {RING}"),
    Layout("dense", f"context=2 tensor=4 {SP}"),
    Layout("dense", "stage=2 data=4 zero=1", "1f1b", 2),
    Layout("dense", "stage=2 data=4 zero=2", "gpipe", 2),
    Layout("dense", f"stage=2 tensor=4 {SP}", "1f1b", 4),
    Layout("dense", f"stage=3 tensor=2 {TP}", "1f1b", 4),
    Layout("MoE", "data=2 expert=4"),
    Layout("MoE, all-to-all", "expert=4 tensor=2"),
    Layout("MoE, dropless", "data=2 expert=4"),
    Layout("MoE", "stage=2 expert=4", "gpipe", 2),
    Layout("encoder-decoder", "data=4 tensor=2"),
    Layout("encoder-decoder", "stage=2 chunks=2 data=4", "1f1b", 2),
    # Three.
    Layout("dense", "pod=2 data=2 tensor=2"),
    Layout("dense", "stage=2 data=2 tensor=2", "gpipe", 2),
    Layout("dense", "stage=2 data=2 tensor=2", "1f1b", 4),
    Layout("dense", "stage=2 chunks=2 data=2 tensor=2", "1f1b", 4, "block"),
    Layout("dense", f"stage=2 context=2 tensor=2 {RING}", "1f1b", 2),
    Layout("dense", "pod=2 stage=2 data=2", "1f1b", 2),
    Layout("MoE", "data=2 expert=2 tensor=2"),
    Layout("MoE", f"context=2 expert=2 tensor=2 {SP}"),
    Layout("MoE", "stage=2 expert=2 tensor=2", "1f1b", 2),
    Layout("MoE", "stage=2 chunks=2 data=2 expert=2", "gpipe", 2),
    Layout("MoE, all-to-all", "stage=2 data=2 expert=2", "1f1b", 2),
    Layout("MoE", "stage=2 context=2 expert=2", "1f1b", 2),
    Layout("encoder-decoder", "stage=2 data=2 tensor=2", "1f1b", 4),
    Layout("encoder-decoder", f"stage=2 context=2 tensor=2 {RING}", "gpipe", 2),
    Layout("encoder-decoder", "pod=2 data=2 context=2"),
]
ALL = "pod=2 stage=2 data=2 expert=2 context=2 tensor=2"
# On 64 devices, in a process of their own.
WITH_ALL = [Layout("dense", ALL, "1f1b", 2), Layout("MoE", ALL, "gpipe", 2), Layout("encoder-decoder", ALL, "1f1b", 2)]


def batch(model: Model) -> Batch:
    """Packed documents, some rows with padding."""
    random = np.random.default_rng(0)
    tokens, source = (random.integers(1, 264, (ROWS, LENGTH), dtype=np.int32) for _ in range(2))
    segments = np.sort(random.integers(1, 4, (ROWS, LENGTH), dtype=np.int32), axis=1)
    segments[4:8, 12:] = tokens[4:8, 12:] = 0
    rows = Batch(tokens, tokens, segments)
    if model.config.shape == "encoder_decoder":
        rows = rows._replace(encoder_tokens=source, encoder_segments=segments)
    return jax.device_put(rows, model.rules("batch", None))


def draw(model: Model) -> dict:
    """Parameters from numpy, the same on every mesh."""
    random = np.random.default_rng(0)

    def one(variable: nnx.Variable) -> jax.Array:
        value = variable.get_value()
        noise = random.normal(size=value.shape)
        drawn = variable.std * noise if variable.std else 1 + 0.2 * noise
        return jax.device_put(drawn.astype(np.float32), on_mesh(value, model.rules.mesh).sharding)

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(one, model.variables, is_leaf=is_variable))


def computed(layout: Layout) -> tuple:
    """Gradients, sums of the loss, and what routers add to it."""
    mesh = make_mesh(layout.mesh_config)
    model = Model(
        replace(FAMILIES[layout.family], remat=layout.remat, attention=layout.attention),
        rules_of(layout.mesh_config, mesh),
    )
    train = TrainConfig(num_steps=1, microbatches=layout.microbatches, pipeline=layout.pipeline)
    rows = batch(model)
    compute = jax.jit(partial(gradient_sums, model, train), compiler_options=compiler_options(mesh))
    grads, sums = jax.device_get(compute(draw(model), rows, None))
    added = 0.0
    if sums.routing is not None:
        added = np.asarray(routing_loss(model.config.moe, sums.routing, jax.device_get(routed_tokens(model, rows))))
    return grads, sums, added


expected = cache(lambda family: computed(Layout(family, "data=1")))


def largest_error(layout: Layout) -> float:
    """The largest difference of any array from one device's, as a share of its largest number."""
    errors = jax.tree.map(
        lambda a, e: (
            float(np.max(np.abs(a - e)) / np.max(np.abs(e))) if np.max(np.abs(e)) else float(np.max(np.abs(a)))
        ),
        computed(layout),
        expected(layout.family),
    )
    return max(jax.tree.leaves(errors))


# The others take ten minutes.
QUICK = {
    *("dense: data=8 zero=1 microbatches=2", "dense: data=8 zero=2 microbatches=2", f"dense: tensor=8 {SP}"),
    *(f"dense: context=8 {RING}", "dense: stage=4 gpipe microbatches=4", "dense: stage=4 1f1b microbatches=8"),
    *("dense: stage=2 chunks=2 1f1b microbatches=4", f"dense: stage=3 tensor=2 {TP} 1f1b microbatches=4"),
    *(
        f"dense: stage=2 context=2 tensor=2 {RING} 1f1b microbatches=2",
        "dense: pod=2 stage=2 data=2 1f1b microbatches=2",
    ),
    *("MoE: stage=2 expert=2 tensor=2 1f1b microbatches=2", "encoder-decoder: pod=2 data=2 context=2"),
    "encoder-decoder: stage=2 data=2 tensor=2 1f1b microbatches=4",
}


def marked(layout: Layout) -> object:
    return pytest.param(layout, marks=() if str(layout) in QUICK else pytest.mark.slow, id=str(layout))


def test_quick_ones_exist():
    assert set(map(str, LAYOUTS)) >= QUICK


@pytest.mark.parametrize("layout", map(marked, LAYOUTS))
def test_layout(layout):
    assert largest_error(layout) <= LIMIT


@pytest.mark.parametrize(
    "layout",
    [
        Layout("dense", "data=2 tensor=4", attention="blocked"),
        Layout("dense", "stage=2 data=2 tensor=2", "1f1b", 4, attention="blocked"),
        Layout("encoder-decoder", "stage=2 data=2 tensor=2", "gpipe", 2, attention="blocked"),
    ],
    ids=str,
)
def test_tiles(layout):
    """Attention that holds no scores, beside one device's that does."""
    assert largest_error(layout) <= LIMIT


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 64)
    page = Path("docs/layouts.md")
    lines = ["| family | mesh | pipeline | microbatches | largest error |", "|---|---|---|---|---|"]
    for layout in [*LAYOUTS, *WITH_ALL]:
        pipeline = layout.pipeline if "stage" in layout.mesh else ""
        cells = (layout.family, f"`{layout.mesh}`", pipeline, str(layout.microbatches), f"{largest_error(layout):.1e}")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    begin, end = "<!-- layouts -->\n", "<!-- end of layouts -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    main()
