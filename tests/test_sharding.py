"""Rules: names to specs, what is refused, and what a mesh must divide."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pathways_lm.config import DataConfig, Experiment, MeshConfig, ModelConfig, TrainConfig
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import abstract_mesh
from pathways_lm.sharding import NAMES, PRESETS, Rules, check_fit, make_rules

MESH = abstract_mesh(MeshConfig(data=2, tensor=4), 8)


def refusal(call, *args) -> str:
    """The one line of a ConfigError."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Switch section 5.5: experts are spread over devices that also have sequences of their own.
ROWS_CUT, POOL = ("pod", "data", "expert"), ("pod", "data", "tensor", "expert")
# ZeRO's third stage: over all devices that have the same parameters and other tokens. Experts lie apart already.
STORED, STORED_POOL = ("data", "expert", "context"), ("data", "tensor", "expert", "context")
OF_EXPERTS, OF_EXPERTS_POOL = ("data", "context"), ("data", "tensor", "context")
LOGITS = ("tensor", "stage")


@pytest.mark.parametrize(
    ("preset", "kernel", "experts", "residual", "logits"),
    [
        # PaLM section 4: 12-way model times 256-way fully sharded data. GSPMD: activations between
        # blocks [batch, length, model] on (X, -, Y).
        (
            "palm_2d",
            P(STORED, "tensor"),
            P("expert", OF_EXPERTS, "tensor"),
            P(ROWS_CUT, "context", "tensor"),
            P(ROWS_CUT, "context", LOGITS),
        ),
        # ZeRO stage 3: one pool of devices.
        (
            "fsdp",
            P(STORED_POOL, None),
            P("expert", OF_EXPERTS_POOL, None),
            P(POOL, "context", None),
            P(POOL, "context", "stage"),
        ),
        # Megatron-LM: columns on tensor, activations between blocks whole.
        (
            "tensor_parallel",
            P(STORED, "tensor"),
            P("expert", OF_EXPERTS, "tensor"),
            P(ROWS_CUT, "context", None),
            P(ROWS_CUT, "context", LOGITS),
        ),
        # Korthikanti: cut along the sequence instead.
        (
            "sequence_parallel",
            P(STORED, "tensor"),
            P("expert", OF_EXPERTS, "tensor"),
            P(ROWS_CUT, ("context", "tensor"), None),
            P(ROWS_CUT, "context", LOGITS),
        ),
    ],
)
def test_presets(preset, kernel, experts, residual, logits):
    rules = make_rules(preset, MESH)
    assert rules("embed", "mlp").spec == kernel
    assert rules("batch", "residual_length", "residual").spec == residual
    assert rules("batch", "length", "vocab").spec == logits
    assert rules("expert", "expert_embed", "mlp").spec == experts
    # Where ZeRO cuts nothing, the model dimension is whole; in a product it always is.
    assert make_rules(preset, MESH, zero=0)("embed", "mlp").spec == P(None, kernel[1])
    assert rules.used("embed", "mlp").spec.partitions == (None, kernel[1])
    assert rules("norm").spec == P(None)
    assert rules().spec == P()
    assert rules("batch", None).mesh == MESH


def test_presets_are_all_tested():
    assert set(PRESETS) == {"palm_2d", "fsdp", "tensor_parallel", "sequence_parallel"}


def test_unknown_names():
    assert refusal(make_rules, "palm2d", MESH) == "mesh.rules has no preset 'palm2d'; did you mean 'palm_2d'?"
    assert refusal(make_rules("fsdp", MESH), "bacth") == "no dimension 'bacth'; did you mean 'batch'?"
    message = refusal(Rules, MESH, (("head", ("data",)),))
    assert message == "sharding rules name no dimension 'head'; did you mean 'heads'?"
    message = refusal(Rules, MESH, (("heads", ("tensr",)),))
    assert message == "sharding rules put 'heads' on axis 'tensr'; did you mean 'tensor'?"


def test_two_dimensions_on_one_axis():
    message = "dimensions 'heads' and 'mlp' of one array both lie on mesh axis 'tensor'"
    assert refusal(make_rules("palm_2d", MESH), "heads", "mlp") == message
    assert refusal(make_rules("fsdp", MESH), "batch", "embed").endswith("both lie on mesh axis 'data'")
    assert refusal(make_rules("palm_2d", MESH), "embed", "embed")


@given(st.sampled_from(sorted(PRESETS)), st.lists(st.sampled_from([None, *sorted(NAMES)]), max_size=4))
def test_any_names(preset, names):
    """Either a spec with an entry for each dimension, no axis twice; or a refusal."""
    rules = make_rules(preset, MESH)
    try:
        spec = rules(*names).spec
    except ConfigError:
        wanted = [axis for name in names for axis in PRESETS[preset].get(name, ())]
        assert len(wanted) > len(set(wanted))
        return
    assert len(spec) == len(names)
    axes = [axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
    assert len(axes) == len(set(axes))
    for name, entry in zip(names, spec, strict=True):
        assert (entry is None) == (name is None or name not in PRESETS[preset])


def test_hashable_and_equal():
    """A value: jit and modules compare and hash it."""
    same = make_rules("palm_2d", abstract_mesh(MeshConfig(data=2, tensor=4), 8))
    assert same == make_rules("palm_2d", MESH)
    assert hash(same) == hash(make_rules("palm_2d", MESH))
    assert same != make_rules("fsdp", MESH)
    assert same != make_rules("palm_2d", abstract_mesh(MeshConfig(data=4, tensor=2), 8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        same.table = ()


def test_parts():
    rules = {preset: make_rules(preset, MESH) for preset in PRESETS}
    assert [rules["palm_2d"].parts(name) for name in ("batch", "heads", "embed", "norm")] == [2, 4, 2, 1]
    assert [rules["fsdp"].parts(name) for name in ("batch", "heads", "embed")] == [8, 1, 8]
    assert [rules["tensor_parallel"].parts(name) for name in ("batch", "mlp", "embed")] == [2, 4, 2]
    assert make_rules("tensor_parallel", MESH, zero=0).parts("embed") == 1


def experiment(batch_size: int = 16, microbatches: int = 1, **model) -> Experiment:
    sizes = {"num_layers": 1, "embed_dim": 24, "num_heads": 8, "head_dim": 2, "mlp_dim": 40, "vocab_size": 264, **model}
    return Experiment(
        name="fit",
        model=ModelConfig(**sizes),
        train=TrainConfig(num_steps=1, microbatches=microbatches),
        data=DataConfig(batch_size=batch_size),
    )


ROWS = "data.batch_size / train.microbatches"


@pytest.mark.parametrize(
    ("preset", "changes", "what", "name", "axes", "fits"),
    [
        ("palm_2d", {"num_heads": 6}, "model.num_heads=6", "heads", "mesh.tensor=4", "4 or 8"),
        ("palm_2d", {"num_heads": 3}, "model.num_heads=3", "heads", "mesh.tensor=4", "4"),
        ("palm_2d", {"mlp_dim": 42}, "model.mlp_dim=42", "mlp", "mesh.tensor=4", "40 or 44"),
        ("palm_2d", {"vocab_size": 262}, "model.vocab_size=262", "vocab", "mesh.tensor=4", "260 or 264"),
        ("palm_2d", {"embed_dim": 25}, "model.embed_dim=25", "embed", "mesh.data=2", "24 or 26"),
        ("palm_2d", {"embed_dim": 26}, "model.embed_dim=26", "residual", "mesh.tensor=4", "24 or 28"),
        ("fsdp", {"embed_dim": 28}, "model.embed_dim=28", "embed", "mesh.data=2 x mesh.tensor=4", "24 or 32"),
        (
            "fsdp",
            {"batch_size": 24, "microbatches": 2},
            f"{ROWS}=12",
            "batch",
            "mesh.data=2 x mesh.tensor=4",
            "8 or 16",
        ),
        ("tensor_parallel", {"batch_size": 1}, f"{ROWS}=1", "batch", "mesh.data=2", "2"),
    ],
)
def test_what_does_not_fit(preset, changes, what, name, axes, fits):
    """Which field, which dimension, which axis, and what would fit."""
    message = refusal(check_fit, experiment(**changes), make_rules(preset, MESH))
    assert message == f"{what} ('{name}') is not divisible by {axes}; {fits} would be"


@given(
    st.sampled_from(sorted(PRESETS)),
    st.tuples(*(st.integers(1, 40) for _ in range(4))),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_fitting_means_that_every_array_can_be_cut(preset, sizes, microbatches, data, tensor):
    """Checked against the arrays themselves: JAX refuses a shape that a sharding does not divide."""
    embed, heads, mlp, rows = sizes
    rules = make_rules(preset, abstract_mesh(MeshConfig(data=data, tensor=tensor), data * tensor))
    case = experiment(rows * microbatches, microbatches, embed_dim=embed, num_heads=heads, mlp_dim=mlp)
    arrays = [
        (("embed", "heads", "head_dim"), (embed, heads, 2)),
        (("embed", "mlp"), (embed, mlp)),
        (("vocab", "embed"), (264, embed)),
        (("batch", "length", "residual"), (rows, 3, embed)),
        (("batch", "length", "vocab"), (rows, 3, 264)),
    ]

    def can_be_cut(names, shape):
        try:
            rules(*names).shard_shape(shape)
        except ValueError:
            return False
        return True

    fits = all(can_be_cut(*array) for array in arrays)
    if fits:
        check_fit(case, rules)
    else:
        refusal(check_fit, case, rules)
