"""How the named dimensions of arrays lie on the mesh.

Layers name dimensions (`'batch'`, `'embed'`, `'heads'`) and a frozen `Rules` value says which mesh
axes each is cut along. Two kinds of names are told apart: `'embed'` is the model dimension of a
*parameter*, `'residual'` the model dimension of the *activations* between blocks, whose length is
`'residual_length'`, while inside of blocks it is `'length'`. `'batch'` is cut over the experts' axes,
too; `'group'` is what remains of it where tokens lie with their experts. There, `'places'` are those of an
expert in a group; `'moved'` is the model dimension of tokens on their way, whose sequences are whole.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pathways_lm.config import Experiment, MeshConfig
from pathways_lm.errors import ConfigError, nearest
from pathways_lm.mesh import CONTEXT, DATA, EXPERT, POD, STAGE, TENSOR

Axes = tuple[str, ...]

# Sequences are cut over the expert axis, too: it is a data axis along which experts are spread. It comes last, so that
# devices which exchange tokens hold neighbouring groups.
SEQUENCES = (POD, DATA, EXPERT)
# A pipeline's stages share the embedding table and the logits: no stage waits for the one that would have them.
EVERYWHERE: Mapping[str, Axes] = {
    "vocab": (TENSOR, STAGE),
    "layers": (STAGE,),
    "stage": (STAGE,),
    "expert": (EXPERT,),
    "length": (CONTEXT,),
    "residual_length": (CONTEXT,),
    "places": (CONTEXT,),
    "moved": (CONTEXT,),
}
BY_TENSOR: Mapping[str, Axes] = {
    **EVERYWHERE,
    "batch": SEQUENCES,
    "heads": (TENSOR,),
    "mlp": (TENSOR,),
    "group": (POD, DATA),
    "embed": (DATA, EXPERT, CONTEXT),
    "expert_embed": (DATA, CONTEXT),
}

PRESETS: Mapping[str, Mapping[str, Axes]] = {
    # PaLM section 4, GSPMD's "2D finalized": parameters over both axes, gathered over data when used;
    # activations between blocks over both axes, gathered over tensor inside a block. With experts on their axis and
    # their hidden units on `tensor`, GLaM's (arXiv:2112.06905, section 5.2).
    "palm_2d": {**BY_TENSOR, "residual": (TENSOR,)},
    # Every device of `data` and `tensor` has its own sequences.
    "fsdp": {
        **EVERYWHERE,
        "vocab": (STAGE,),
        "batch": (POD, DATA, TENSOR, EXPERT),
        "group": (POD, DATA, TENSOR),
        "embed": (DATA, TENSOR, EXPERT, CONTEXT),
        "expert_embed": (DATA, TENSOR, CONTEXT),
    },
    # Megatron-LM (arXiv:1909.08053, section 3): parameters cut by heads and columns, activations
    # between blocks whole. Switch (arXiv:2101.03961, section 5.5): experts apart from both.
    "tensor_parallel": BY_TENSOR,
    # The same with what lies between blocks cut along the sequence (Korthikanti, arXiv:2205.05198, section 4.2.2).
    "sequence_parallel": {**BY_TENSOR, "residual_length": (CONTEXT, TENSOR)},
}

NAMES = frozenset(
    {"batch", "length", "residual", "residual_length", "embed", "expert_embed", "heads", "head_dim", "mlp", "vocab"}
    | {"expert", "group", "places", "moved", "norm", "layers", "stage"}
)
# Names of parameters' dimensions that ZeRO cuts.
STORED = ("embed", "expert_embed")
# Dimensions of activations that count tokens.
TOKENS = ("batch", "length")


@dataclass(frozen=True)
class Rules:
    """Dimension names to shardings on one mesh. Hashable, so that modules hold it as a static value."""

    mesh: Mesh | AbstractMesh
    table: tuple[tuple[str, Axes], ...]
    zero: int = 3
    """ZeRO's stage, see `MeshConfig.zero`."""
    chunks: int = 1
    """Runs of layers on each of a pipeline's stages."""
    ring: bool = False
    """Attention along a cut length sends keys and values round, see `MeshConfig.context_attention`."""
    offload: bool = False
    """Whether the optimizer's state lies in the hosts' memory, see `MeshConfig.offload`."""

    def __post_init__(self) -> None:
        for name, axes in self.table:
            if name not in NAMES:
                raise ConfigError(f"sharding rules name no dimension '{name}'{nearest(name, NAMES)}")
            for axis in axes:
                if axis not in self.mesh.axis_names:
                    raise ConfigError(
                        f"sharding rules put '{name}' on axis '{axis}'{nearest(axis, self.mesh.axis_names)}"
                    )

    def __call__(self, *names: str | None) -> NamedSharding:
        """The sharding of an array with these dimensions; None is a dimension kept whole.

        Raises ConfigError for an unknown name, and for two dimensions on one mesh axis.
        """
        return NamedSharding(self.mesh, PartitionSpec(*self._entries(names)))

    def used(self, *names: str | None, tokens: tuple[str, ...] = TOKENS) -> NamedSharding:
        """The sharding of a parameter in a product or lookup: whole along the model dimension.

        Along axes on which devices have the same of it, but other tokens, it is `reduced`: its gradient is left as
        sums of each device's own tokens, to be added over devices once, after all layers and microbatches.

        Args:
          tokens: the dimensions of the activations over which the gradient sums.
        """
        entries = self._entries(tuple(None if name in STORED else name for name in names))
        return NamedSharding(self.mesh, PartitionSpec(*entries, reduced=self._summed(entries, tokens)))

    def held(self, *names: str | None, tokens: tuple[str, ...] = TOKENS) -> NamedSharding:
        """The sharding of a parameter throughout a step: as stored, or as used where ZeRO gathers once a step.

        Args:
          tokens: as for `used`; empty for a parameter that is not used so, whose gradient is added where it arises.
        """
        entries = self._entries(tuple(None if name in STORED and self.zero < 3 else name for name in names))
        return NamedSharding(self.mesh, PartitionSpec(*entries, reduced=self._summed(entries, tokens)))

    @property
    def stages(self) -> int:
        """Stages of the pipeline; 1 where there is none."""
        return self.parts("layers")

    def deals(self, num_layers: int) -> bool:
        """Whether a stage's layers are others than a stored stack's part of equal size."""
        return self.stages > 1 and (self.chunks > 1 or num_layers % self.stages > 0)

    def stacked(self, num_layers: int, *names: str) -> NamedSharding:
        """The sharding of a stored stack of layers' parameters: each stage's with it.

        Where the layers must be dealt out first, they are cut over the stages along the model dimension instead, so
        that dealing is one exchange of equal parts.
        """
        entries = self._entries(names)
        if not self.deals(num_layers):
            return NamedSharding(self.mesh, PartitionSpec(STAGE if self.stages > 1 else None, *entries))
        for place, name in enumerate(names):
            if name in STORED:
                entries[place] = (*self.axes(name), *self.axes("layers"))
        return NamedSharding(self.mesh, PartitionSpec(None, *entries))

    def partial(self, *names: str | None, over: str) -> NamedSharding:
        """The sharding of a product that sums over a cut dimension and is still to be added over devices."""
        pending = set(self.axes(over)) if self.mesh.size > 1 else set()
        return NamedSharding(self.mesh, PartitionSpec(*self._entries(names), unreduced=pending))

    def _summed(self, entries: list[str | Axes | None], tokens: tuple[str, ...]) -> set[str]:
        if self.mesh.size == 1:
            return set()
        cut = {axis for entry in entries if entry for axis in ((entry,) if isinstance(entry, str) else entry)}
        return {axis for name in tokens for axis in self.axes(name)} - cut

    def _entries(self, names: tuple[str | None, ...]) -> list[str | Axes | None]:
        table = dict(self.table)
        taken: dict[str, str] = {}
        entries: list[str | Axes | None] = []
        for name in names:
            if name is None:
                entries.append(None)
                continue
            if name not in NAMES:
                raise ConfigError(f"no dimension '{name}'{nearest(name, NAMES)}")
            axes = table.get(name, ())
            for axis in axes:
                if axis in taken:
                    raise ConfigError(
                        f"dimensions '{taken[axis]}' and '{name}' of one array both lie on mesh axis '{axis}'"
                    )
                taken[axis] = name
            entries.append(axes[0] if len(axes) == 1 else axes or None)
        return entries

    def axes(self, name: str) -> Axes:
        """The mesh axes a dimension is cut along."""
        return dict(self.table).get(name, ())

    def parts(self, name: str) -> int:
        """Into how many parts a dimension is cut."""
        size = 1
        for axis in dict(self.table).get(name, ()):
            size *= self.mesh.shape[axis]
        return size


def on_mesh(traced: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> jax.ShapeDtypeStruct:
    """The same array on `mesh`, its devices included.

    Tracing gives a spec on an abstract mesh, and from JAX 0.12 on none at all for an array that lies whole on every
    device; so do scalars made from nothing. What is restored or compiled needs the devices.
    """
    whole = PartitionSpec(*(None for _ in traced.shape))
    spec = whole if traced.sharding is None else traced.sharding.spec
    return jax.ShapeDtypeStruct(traced.shape, traced.dtype, sharding=NamedSharding(mesh, spec))


def shard_bytes(tree: Any) -> float:
    """Bytes of one device's part of arrays with shardings."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return float(sum(math.prod(shape) * size for shape, size in shards))


def make_rules(preset: str, mesh: Mesh | AbstractMesh, zero: int = 3, chunks: int = 1, ring: bool = False) -> Rules:
    """The preset of that name on `mesh`. Raises ConfigError naming the nearest one."""
    if preset not in PRESETS:
        raise ConfigError(f"mesh.rules has no preset '{preset}'{nearest(preset, PRESETS)}")
    table = {name: () if name in STORED and zero == 0 else axes for name, axes in PRESETS[preset].items()}
    return Rules(mesh, tuple(table.items()), zero, chunks, ring and mesh.shape[CONTEXT] > 1)


def rules_of(config: MeshConfig, mesh: Mesh | AbstractMesh) -> Rules:
    """The rules that a config asks for."""
    rules = make_rules(config.rules, mesh, config.zero, config.chunks, config.context_attention == "ring")
    return replace(rules, offload=config.offload)


def whole_sequences(rules: Rules) -> Rules:
    """The same layout of parameters and batches with every sequence whole: for tokens that come one at a time, and for
    lengths that nothing divides."""
    uncut = ("length", "residual_length", "places", "moved")
    table = tuple((name, () if name in uncut else axes) for name, axes in rules.table)
    return replace(rules, table=table, ring=False)


def check_fit(experiment: Experiment, rules: Rules) -> None:
    """Raises ConfigError where the mesh does not divide a dimension of the model or the batch."""
    model, data = experiment.model, experiment.data
    dimensions = [
        ("model.embed_dim", model.embed_dim, "embed"),
        ("model.embed_dim", model.embed_dim, "residual"),
        ("model.num_heads", model.num_heads, "heads"),
        ("model.mlp_dim", model.mlp_dim, "mlp"),
        ("model.vocab_size", model.vocab_size, "vocab"),
        ("data.batch_size / train.microbatches", data.batch_size // experiment.train.microbatches, "batch"),
    ]
    if model.moe.num_experts:
        dimensions.append(("model.moe.num_experts", model.moe.num_experts, "expert"))
        dimensions.append(("model.embed_dim", model.embed_dim, "moved"))
    if model.moe.mlp_dim:
        dimensions.append(("model.moe.mlp_dim", model.moe.mlp_dim, "mlp"))
    for field, size, name in dimensions:
        parts = rules.parts(name)
        if size % parts:
            axes = " x ".join(
                f"mesh.{axis}={rules.mesh.shape[axis]}" for axis in rules.axes(name) if rules.mesh.shape[axis] > 1
            )
            below, above = size // parts * parts, -(-size // parts) * parts
            fits = " or ".join(str(value) for value in (below, above) if value > 0)
            raise ConfigError(f"{field}={size} ('{name}') is not divisible by {axes}; {fits} would be")
    if rules.stages > 1:
        _check_stages(experiment, rules)
    if rules.ring and model.window:
        raise ConfigError(
            f"mesh.context_attention='ring' goes round all keys: model.window={model.window} must be 0, or "
            "mesh.context_attention 'gather'"
        )
    if rules.ring and model.dropout:
        raise ConfigError(
            f"mesh.context_attention='ring' cannot drop attention's weights: model.dropout={model.dropout} must be 0, "
            "or mesh.context_attention 'gather'"
        )
    kv_heads, parts = model.num_kv_heads, rules.parts("heads")
    if kv_heads % parts and parts % kv_heads:
        raise ConfigError(
            f"model.num_kv_heads={kv_heads} and the {parts} parts that heads are cut into must divide one another"
        )


def _check_stages(experiment: Experiment, rules: Rules) -> None:
    model = experiment.model
    every = model.moe.every if model.moe.num_experts else 1
    chunks = f"mesh.stage={rules.stages} x mesh.chunks={rules.chunks}"
    for name, layers in (("num_layers", model.num_layers), ("num_encoder_layers", model.num_encoder_layers)):
        repeats = layers // every
        field = f"model.{name}={layers}" + (f" in patterns of {every}" if every > 1 else "")
        if layers and repeats < rules.stages * rules.chunks:
            raise ConfigError(f"{chunks} needs as many layers, and {field} are {repeats}")
        parts = rules.parts("embed") * rules.stages
        if layers and rules.deals(repeats) and model.embed_dim % parts:
            raise ConfigError(
                f"{field} is not a multiple of {chunks}: so they are dealt out, and stored in {parts} parts, by which "
                f"model.embed_dim={model.embed_dim} is not divisible"
            )
