"""An experiment as frozen dataclasses, checked when they are built.

Every field is checked for its type and range here, and for its relation to other fields in
`Experiment`. What depends on the devices (does the mesh fit?) is checked in `mesh` and `sharding`.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from pathways_lm.checked import Checked, bounded
from pathways_lm.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Checked):
    """A mixture of experts in place of the MLP of some layers (Switch, GShard, GLaM, ST-MoE)."""

    section: typing.ClassVar[str] = "model.moe"

    num_experts: int = bounded(0, at_least=0)
    """Experts of an MoE layer; 0 is a dense model."""
    router: str = bounded("top_k", one_of=("top_k", "expert_choice"))
    """`top_k`: tokens choose experts. `expert_choice`: experts choose tokens, which looks ahead in a causal model."""
    top_k: int = bounded(1, at_least=1)
    every: int = bounded(2, at_least=1)
    """One layer in so many is an MoE layer."""
    offset: int = bounded(-1, at_least=-1)
    """Which one of each `every`, from 0; -1 is the last."""
    mlp_dim: int = bounded(0, at_least=0)
    """Hidden units of an expert; 0 takes the model's."""
    activation: str = bounded("", one_of=("", "relu", "gelu", "gelu_tanh", "swiglu", "geglu"))
    """Of the experts; empty takes the model's."""
    capacity_factor: float = bounded(1.25, above=0)
    """An expert takes at most this times tokens / experts of each group in training, the rest are dropped."""
    eval_capacity_factor: float = bounded(2.0, above=0)
    min_capacity: int = bounded(4, at_least=1)
    group_tokens: int = bounded(0, at_least=0)
    """Tokens that compete for places, at most, whatever the number of devices; 0 takes each sequence as a group."""
    renormalise: bool = True
    """Divide the gates of a token's experts by their sum. Switch does not."""
    second_expert: str = bounded("all", one_of=("all", "random", "threshold"))
    """In training, keep a token's second expert always, with probability 2 g2 (GShard), or g2 / threshold (ST-MoE)."""
    second_threshold: float = bounded(0.2, above=0)
    jitter: float = bounded(0.0, at_least=0, at_most=0.5)
    """The router's inputs are multiplied by U(1 - jitter, 1 + jitter) in training."""
    balance: str = bounded("switch", one_of=("switch", "gshard"))
    """Switch's form of the balance loss is 1 where experts are used evenly; GShard's is that over experts^2."""
    balance_loss: float = bounded(0.01, at_least=0)
    router_z_loss: float = bounded(0.0, at_least=0)
    dropout: float = bounded(0.0, at_least=0, below=1)
    """Of the hidden units of experts."""
    extra_dense: bool = False
    """A dense MLP layer after each MoE layer (ST-MoE)."""
    dispatch: str = bounded("einsum", one_of=("einsum", "all_to_all", "dropless"))
    """How tokens reach experts: products with one-hot masks, an exchange by index, or sorted without a capacity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts and self.top_k > self.num_experts:
            raise ConfigError(f"model.moe.top_k={self.top_k} is above model.moe.num_experts={self.num_experts}")
        if self.offset >= self.every:
            raise ConfigError(f"model.moe.offset={self.offset} must be below model.moe.every={self.every}, or -1")
        if self.router == "expert_choice" and self.dispatch == "dropless":
            raise ConfigError(
                "model.moe.dispatch='dropless' is for tokens that choose; experts that choose fill a capacity"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A transformer of one or two towers of alike blocks. The defaults are PaLM's (arXiv:2204.02311, section 2)."""

    section: typing.ClassVar[str] = "model"

    shape: str = bounded("decoder", one_of=("decoder", "encoder_decoder", "encoder"))
    num_layers: int = bounded(at_least=1)
    """Of the decoder, or of the only tower."""
    num_encoder_layers: int = bounded(0, at_least=0)
    """Of the encoder beside a decoder; 0 is as many as the decoder's."""
    embed_dim: int = bounded(at_least=1)
    num_heads: int = bounded(at_least=1)
    num_kv_heads: int = bounded(1, at_least=1)
    """Heads of keys and values: 1 is multi-query, `num_heads` multi-head, between them grouped-query attention."""
    head_dim: int = bounded(at_least=2)
    mlp_dim: int = bounded(at_least=1)
    vocab_size: int = bounded(at_least=260)
    """Rows of the embedding table: three special tokens, 256 bytes and the learned pieces."""
    block: str = bounded("parallel", one_of=("parallel", "pre_norm", "post_norm"))
    """MLP beside attention (PaLM), or one after the other with norms before (GPT-2, T5) or after (BERT)."""
    norm: str = bounded("layer", one_of=("layer", "rms"))
    norm_scale: bool = True
    norm_bias: bool = False
    norm_epsilon: float = bounded(1e-6, above=0)
    activation: str = bounded("swiglu", one_of=("relu", "gelu", "gelu_tanh", "swiglu", "geglu"))
    """`gelu` is exact, `gelu_tanh` its approximation, which `geglu` uses too. swiglu and geglu have a third kernel."""
    bias: bool = False
    """Biases of the kernels of attention and MLP."""
    positions: str = bounded("rotary", one_of=("rotary", "learned", "relative", "relative_per_layer", "none"))
    """`relative` is T5's bucketed bias, one table a tower or one a layer."""
    rope_base: float = bounded(10_000.0, above=0)
    max_length: int = bounded(0, at_least=0)
    """Rows of the table of learned positions."""
    relative_buckets: int = bounded(32, at_least=2)
    relative_max_distance: int = bounded(128, at_least=2)
    scaled_attention: bool = True
    """Scores are divided by sqrt(head_dim). T5 folds that into the queries' initial spread."""
    tied_head: bool = True
    """The logits' kernel is the embedding table."""
    scaled_logits: bool = True
    """What enters the logits' product is divided by sqrt(embed_dim)."""
    token_types: int = bounded(0, at_least=0)
    """Rows of the table of token types (BERT's two sentences); 0 has none."""
    pooler: bool = False
    """An encoder's first position also tells whether two sentences stand in order (BERT)."""
    init: str = bounded("fan_in", one_of=("fan_in", "truncated_fan_in", "t5", "megatron"))
    """Kernels from N(0, init_scale / inputs), the same truncated at two deviations (Switch), the same with T5's smaller
    queries, or N(0, init_std^2) with kernels that end a residual branch smaller by sqrt(2 layers)."""
    init_scale: float = bounded(1.0, above=0)
    init_std: float = bounded(0.02, above=0)
    dropout: float = bounded(0.0, at_least=0, below=1)
    """Of the embeddings, the attention's weights and what each layer adds."""
    hidden_dropout: float = bounded(0.0, at_least=0, below=1)
    """Of the hidden units of dense MLPs."""
    moe: MoEConfig = MoEConfig()
    remat: str = bounded("none", one_of=("none", "attention", "block", "offload"))
    """What the backward pass computes again: nothing, attention (PaLM 8B and 62B), or whole blocks from their inputs,
    which `offload` keeps in the hosts' memory."""
    unroll: int = bounded(1, at_least=1)
    """Layers per iteration of the scan. Above 1, compile time grows and CPUs run faster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide model.num_heads={self.num_heads}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs")
        if self.positions == "learned" and not self.max_length:
            raise ConfigError("model.max_length is not set: learned positions need a table of that many rows")
        if self.shape == "encoder_decoder" and self.block == "parallel":
            raise ConfigError(
                "model.block='parallel' has no place for the decoder's look at the encoder; use 'pre_norm'"
            )
        if self.shape == "encoder" and not self.tied_head:
            raise ConfigError("model.tied_head=False: the masked-LM head of an encoder is its embedding table")
        if self.pooler and self.shape != "encoder":
            raise ConfigError(f"model.pooler is for model.shape='encoder', not {self.shape!r}")
        if self.num_encoder_layers and self.shape != "encoder_decoder":
            raise ConfigError(f"model.num_encoder_layers is for 'encoder_decoder'; a {self.shape!r} has num_layers")
        if self.moe.num_experts:
            self._check_experts()

    def _check_experts(self) -> None:
        every = self.moe.every
        for name, layers in (("num_layers", self.num_layers), ("num_encoder_layers", self.num_encoder_layers)):
            if layers % every:
                raise ConfigError(f"model.{name}={layers} is not a multiple of model.moe.every={every}")
        if self.moe.router == "expert_choice" and self.shape != "encoder":
            raise ConfigError(
                "model.moe.router='expert_choice' is for encoders: an expert that chooses among the tokens of a "
                "sequence lets later tokens decide what becomes of earlier ones, which a decoder must not know"
            )


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """How many devices along each axis, of which one may be -1 for all that the others leave; and what lies on them."""

    section: typing.ClassVar[str] = "mesh"

    pod: int = bounded(1, at_least=-1)
    """Slices that only a data centre's network joins, each with a copy of the parameters."""
    stage: int = bounded(1, at_least=-1)
    """Stages of a pipeline, each with its own layers."""
    chunks: int = bounded(1, at_least=1)
    """Runs of layers that each stage has. With several, a microbatch goes round the stages as often, and the time that
    stages wait at the ends of a step is as many times shorter (interleaved stages; needs microbatches in multiples of
    the stages)."""
    data: int = bounded(-1, at_least=-1)
    expert: int = bounded(1, at_least=-1)
    """Along which experts lie apart; it also cuts the batch."""
    context: int = bounded(1, at_least=-1)
    """Along which sequences are cut."""
    tensor: int = bounded(1, at_least=-1)
    context_attention: str = bounded("gather", one_of=("gather", "ring"))
    """What devices that share a sequence do: `gather` each other's keys and values, or send them round in a `ring`, in
    memory that grows with the length and not with its square."""
    rules: str = "palm_2d"
    """The layout: `palm_2d`, `fsdp`, `tensor_parallel` or `sequence_parallel` (see `pathways_lm.sharding`)."""
    zero: int = bounded(3, at_least=0, at_most=3)
    """What lies cut over the devices that share a batch (ZeRO): 0 nothing; 1 the optimizer's state and the fp32
    parameters, gathered once a step; 2 gradients, too, while they are summed; 3 parameters also while they are used."""
    offload: bool = False
    """Whether the optimizer's state lies in the hosts' memory between updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = {item.name for item in dataclasses.fields(self) if item.type is int} - {"zero", "chunks"}
        sizes = {f"mesh.{axis}": size for axis, size in dataclasses.asdict(self).items() if axis in numbers}
        for name, size in sizes.items():
            if size == 0:
                raise ConfigError(f"{name} must be above 0, or -1 to fill up; not 0")
        filling = [name for name, size in sizes.items() if size == -1]
        if len(filling) > 1:
            raise ConfigError(f"{' and '.join(filling)} are -1; only one axis can fill up")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """What is read, and how it becomes batches."""

    section: typing.ClassVar[str] = "data"

    mixture: str = "python_text"
    """A seqio task or mixture: `python_docs`, `python_stdlib` or `python_text` (both)."""
    files: str = ""
    """A glob of text or JSON-lines files, plain or gz. When given, it is read in place of `mixture`."""
    text_key: str = "text"
    """The key of a JSON line that holds the document."""
    vocabulary: str = ""
    """A SentencePiece model file; empty trains one on the corpus."""
    objective: str = bounded("causal", one_of=("causal", "prefix", "span_corruption", "masked"))
    """What is predicted: the next token, the next after a prefix seen both ways, T5's dropped spans, BERT's masks."""
    extra_ids: int = bounded(0, at_least=0)
    """Ids behind the vocabulary's pieces that no text has: T5's sentinels (100), BERT's mask (1)."""
    sequence_length: int = bounded(2048, at_least=2)
    batch_size: int = bounded(512, at_least=1)
    """Sequences in a batch, over all devices."""
    validation_fraction: float = bounded(0.02, above=0, at_most=0.5)
    """The share of files kept for validation, chosen by a hash of their names."""
    seed: int = bounded(0, at_least=0)
    cache_dir: str = "~/.cache/pathways_lm"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """PaLM's Adafactor (section 5.1) or AdamW."""

    section: typing.ClassVar[str] = "optimizer"

    name: str = bounded("adafactor", one_of=("adafactor", "adamw"))
    schedule: str = bounded("rsqrt", one_of=("rsqrt", "cosine"))
    """`rsqrt` holds the rate for `hold_steps`, then falls as 1/sqrt(step); `cosine` warms up and falls to a tenth."""
    learning_rate: float = bounded(1e-2, above=0)
    hold_steps: int = bounded(10_000, at_least=1)
    """`rsqrt`: steps at the full rate. `cosine`: steps of warm-up."""
    beta1: float = bounded(0.9, at_least=0, at_most=0.9999)
    beta2: float = bounded(0.95, at_least=0, at_most=0.9999)
    """AdamW only; Adafactor's is 1 - step^-0.8."""
    weight_decay: float = bounded(1.0, at_least=0)
    """Adafactor: parameters shrink by this times rate squared each step (PaLM: 1). AdamW: by this times rate."""
    clip_norm: float = bounded(1.0, above=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """How long, how precisely, and how often something is written."""

    section: typing.ClassVar[str] = "train"

    num_steps: int = bounded(at_least=1)
    seed: int = bounded(0, at_least=0, at_most=2**32 - 1)
    microbatches: int = bounded(1, at_least=1)
    """Parts a batch is cut into, whose gradients are summed before the update."""
    pipeline: str = bounded("1f1b", one_of=("gpipe", "1f1b"))
    """When stages go back: after all microbatches went forward, or, so that few are on their way, as soon as the first
    has arrived. With mesh.stage above 1."""
    precision: str = bounded("fp32", one_of=("fp32", "bf16"))
    """The type of the arithmetic; parameters and optimizer stay fp32."""
    z_loss: float = bounded(1e-4, at_least=0)
    log_every: int = bounded(10, at_least=1)
    eval_every: int = bounded(500, at_least=1)
    checkpoint_every: int = bounded(500, at_least=1)
    checkpoints_kept: int = bounded(3, at_least=2)
    """Two at least: should the newest be damaged, the one before is used."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Checked):
    """The text written at each validation, to be read in the report."""

    section: typing.ClassVar[str] = "sample"

    prompt: str = "def "
    num_tokens: int = bounded(64, at_least=1)
    temperature: float = bounded(0.7, at_least=0)
    """0 is greedy."""
    top_k: int = bounded(0, at_least=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = bounded(0.95, above=0, at_most=1)
    """Keep the likeliest tokens whose probabilities add up to this."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
    """Everything that decides a run."""

    name: str
    model: ModelConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name in ("", ".", "..") or "/" in self.name:
            raise ConfigError(f"name must be a plain word, it names the run folder; not {self.name!r}")
        if self.mesh.chunks > 1 and self.mesh.stage == 1:
            raise ConfigError(f"mesh.chunks={self.mesh.chunks} is for pipelines; mesh.stage is 1")
        if self.mesh.stage > 1 and self.train.microbatches < self.mesh.stage:
            raise ConfigError(
                f"train.microbatches={self.train.microbatches} is below mesh.stage={self.mesh.stage}: some stages "
                f"would always wait; {self.mesh.stage} would be enough"
            )
        if self.mesh.chunks > 1 and self.train.microbatches % self.mesh.stage:
            raise ConfigError(
                f"train.microbatches={self.train.microbatches} must be a multiple of mesh.stage={self.mesh.stage} with "
                f"mesh.chunks={self.mesh.chunks}"
            )
        if self.data.batch_size % self.train.microbatches:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} does not divide into "
                f"train.microbatches={self.train.microbatches}"
            )
        self._check_objective()
        if self.optimizer.schedule == "cosine" and self.optimizer.hold_steps >= self.train.num_steps:
            raise ConfigError(
                f"optimizer.hold_steps={self.optimizer.hold_steps} of warm-up must be below "
                f"train.num_steps={self.train.num_steps}"
            )

    def _check_objective(self) -> None:
        shapes = {"causal": "decoder", "prefix": "decoder", "span_corruption": "encoder_decoder", "masked": "encoder"}
        needed = shapes[self.data.objective]
        if self.model.shape != needed:
            fitting = " or ".join(repr(name) for name, shape in shapes.items() if shape == self.model.shape)
            raise ConfigError(
                f"data.objective={self.data.objective!r} needs model.shape={needed!r}, not {self.model.shape!r}, "
                f"for which it is {fitting}"
            )
        if self.model.positions == "learned" and self.data.sequence_length > self.model.max_length:
            raise ConfigError(
                f"data.sequence_length={self.data.sequence_length} is above model.max_length={self.model.max_length}"
            )


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "mesh": MeshConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
}


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Nested plain values, as `config.json` holds them."""
    return dataclasses.asdict(experiment)


def from_dict(values: dict[str, Any]) -> Experiment:
    """The inverse of `to_dict`. Raises ConfigError for unknown or missing fields."""
    sections = {name: build(kind, values.get(name, {})) for name, kind in SECTIONS.items()}
    return build(Experiment, {**values, **sections})


def build(kind: type, values: dict[str, Any]) -> Any:
    """`kind(**values)`, sections within it built from their own values; unknown and missing fields are told by name."""
    section = getattr(kind, "section", "")
    prefix = f"{section}." if section else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{section or 'an experiment'} must hold fields by name, not {values!r}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ConfigError(f"no field '{prefix}{name}'{nearest(name, fields)}")
    for name, item in fields.items():
        if name not in values and item.default is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name} is not set, and it has no default")
    types = typing.get_type_hints(kind)
    built = {
        name: build(types[name], value) if isinstance(value, dict) and issubclass(types[name], Checked) else value
        for name, value in values.items()
    }
    return kind(**built)
