"""What a model is made of."""

import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded
from pathways_lm.errors import ConfigError


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
    window: int = bounded(0, at_least=0)
    """Positions that a decoder sees at most, its own and those before it; 0 sees all."""
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
    matmuls: str = bounded("", one_of=("", "int8", "fp8"))
    """Numbers that the kernels of attention and dense MLPs multiply; empty takes the type of the arithmetic."""
    attention: str = bounded("auto", one_of=("auto", "plain", "blocked", "splash", "cudnn", "triton"))
    """How attention is computed (`kernels/choice.py`): `auto` takes the kernel of the platform where it serves, else
    `plain` for short sequences and `blocked` for long ones. Where a run is looked at on another platform than the one
    it trains on, a kernel that is not there is replaced."""
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
        if self.window and self.shape == "encoder":
            raise ConfigError("model.window is what a decoder sees of what stands before; an encoder sees both ways")
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
