"""The papers' architectures: what all sizes of a family share. A config file adds the size.

Each function gives a `ModelConfig`; any field may be given to change it.
"""

from typing import Any

from pathways_lm.config import ModelConfig, MoEConfig

# Rows of the tables: GPT-2's 50,257 tokens padded for 8-way tensor parallelism, BERT's 30,522, T5's 32,000 and 100
# sentinels padded to a multiple of 128, PaLM's and GLaM's SentencePiece.
GPT2_ROWS, BERT_ROWS, T5_ROWS, PALM_ROWS = 51_200, 30_592, 32_128, 256_000


def palm(**size: Any) -> ModelConfig:
    """PaLM (arXiv:2204.02311, section 2): parallel blocks, multi-query attention, RoPE, SwiGLU, no biases."""
    return ModelConfig(**{"vocab_size": PALM_ROWS, "head_dim": 256, **size})


def megatron_gpt2(num_layers: int, embed_dim: int, num_heads: int, **size: Any) -> ModelConfig:
    """Megatron-LM's GPT-2 (arXiv:1909.08053, sections 2.2 and 4): pre-norm, biases, learned positions, GELU."""
    shared = {
        "num_layers": num_layers,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": embed_dim // num_heads,
        "mlp_dim": 4 * embed_dim,
        "vocab_size": GPT2_ROWS,
        "max_length": 1024,
        "block": "pre_norm",
        "norm_bias": True,
        "norm_epsilon": 1e-5,
        "bias": True,
        "activation": "gelu_tanh",
        "positions": "learned",
        "scaled_logits": False,
        "init": "megatron",
        "init_std": 0.02,
        "dropout": 0.1,
    }
    return ModelConfig(**{**shared, **size})


def megatron_turing(num_layers: int, embed_dim: int, num_heads: int, **size: Any) -> ModelConfig:
    """Megatron-Turing NLG and the models of Megatron's 3D parallelism (arXiv:2201.11990; 2104.04473)."""
    deviation = (1 / (3 * embed_dim)) ** 0.5
    shared = {"max_length": 2048, "dropout": 0.0, "init_std": deviation}
    return megatron_gpt2(num_layers, embed_dim, num_heads, **{**shared, **size})


def megatron_bert(num_layers: int, embed_dim: int, num_heads: int, **size: Any) -> ModelConfig:
    """Megatron-LM's BERT (arXiv:1909.08053, section 5.3): norms in front, without which larger ones diverge."""
    shared = {
        "shape": "encoder",
        "vocab_size": BERT_ROWS,
        "max_length": 512,
        "token_types": 2,
        "pooler": True,
        "activation": "gelu",
    }
    return megatron_gpt2(num_layers, embed_dim, num_heads, **{**shared, **size})


def bert(num_layers: int, embed_dim: int, num_heads: int, **size: Any) -> ModelConfig:
    """BERT (arXiv:1810.04805): norms behind, exact GELU."""
    shared = {"block": "post_norm", "norm_epsilon": 1e-12, "vocab_size": 30_522}
    return megatron_bert(num_layers, embed_dim, num_heads, **{**shared, **size})


def t5(num_heads: int, **size: Any) -> ModelConfig:
    """T5 (arXiv:1910.10683, section 2.1): encoder-decoder, RMSNorm, relative positions, ReLU, tied embeddings."""
    shared = {
        "shape": "encoder_decoder",
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": 64,
        "vocab_size": T5_ROWS,
        "block": "pre_norm",
        "norm": "rms",
        "activation": "relu",
        "positions": "relative",
        "scaled_attention": False,
        "init": "t5",
        "dropout": 0.1,
        "hidden_dropout": 0.1,
    }
    return ModelConfig(**{**shared, **size})


def t5_1_1(num_heads: int, **size: Any) -> ModelConfig:
    """T5 1.1 (released with arXiv:2002.05202): GEGLU, a head of its own, no dropout in pre-training."""
    shared = {
        "activation": "geglu",
        "tied_head": False,
        "scaled_logits": False,
        "dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    return t5(num_heads, **{**shared, **size})


def ul2(num_heads: int, **size: Any) -> ModelConfig:
    """UL2 (arXiv:2205.05131): T5 1.1 with SwiGLU and tied embeddings."""
    return t5_1_1(num_heads, **{"activation": "swiglu", "tied_head": True, **size})


def switch(
    num_heads: int, num_experts: int, every: int = 2, moe: dict[str, Any] | None = None, **size: Any
) -> ModelConfig:
    """Switch Transformer (arXiv:2101.03961): T5 whose every `every`-th MLP is one of many experts, smaller draws.

    Section 2.2 (routing, capacity, balance), 2.4 (precision, initialisation, expert dropout in fine-tuning).
    """
    experts = {
        "num_experts": num_experts,
        "top_k": 1,
        "every": every,
        "renormalise": False,
        "jitter": 0.01,
        "balance": "switch",
        "balance_loss": 0.01,
        "capacity_factor": 1.25,
        "eval_capacity_factor": 2.0,
    }
    shared = {"init": "truncated_fan_in", "init_scale": 0.1, "dropout": 0.0, "hidden_dropout": 0.0}
    return t5(num_heads, moe=MoEConfig(**{**experts, **(moe or {})}), **{**shared, **size})


def gshard(num_experts: int, num_layers: int, **size: Any) -> ModelConfig:
    """GShard's translation models (arXiv:2006.16668, section 2): top-2 of ReLU experts in every other layer.

    Args:
      num_layers: of encoder and decoder together, as the paper counts.
    """
    moe = MoEConfig(
        num_experts=num_experts,
        top_k=2,
        second_expert="random",
        balance="gshard",
        capacity_factor=2.0,
        eval_capacity_factor=2.0,
    )
    shared = {"embed_dim": 1024, "mlp_dim": 8192, "head_dim": 128, "vocab_size": 96_000, "num_layers": num_layers // 2}
    return t5(**{"num_heads": 16, "moe": moe, **shared, **size})


def glam(num_heads: int, num_experts: int = 0, **size: Any) -> ModelConfig:
    """GLaM (arXiv:2112.06905, section 4): a decoder, top-2 of ungated experts every other layer, GEGLU in the rest."""
    moe = MoEConfig(
        num_experts=num_experts,
        top_k=2,
        activation="gelu_tanh",
        balance="gshard",
        capacity_factor=2.0,
        eval_capacity_factor=2.0,
    )
    shared = {
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": 128,
        "vocab_size": PALM_ROWS,
        "block": "pre_norm",
        "norm": "rms",
        "activation": "geglu",
        "positions": "relative_per_layer",
        "init": "truncated_fan_in",
    }
    return ModelConfig(**{**shared, "moe": moe if num_experts else MoEConfig(), **size})


def st_moe(num_heads: int, num_experts: int = 0, **size: Any) -> ModelConfig:
    """ST-MoE (arXiv:2202.08906): T5 1.1 with top-2 of gated experts every fourth layer, a dense MLP behind each."""
    moe = MoEConfig(
        num_experts=num_experts,
        top_k=2,
        every=4,
        second_expert="threshold",
        balance_loss=0.01,
        router_z_loss=0.001,
        jitter=0.01,
        capacity_factor=1.25,
        eval_capacity_factor=2.0,
        extra_dense=True,
    )
    shared = {
        "init": "truncated_fan_in",
        "init_scale": 0.1,
        "tied_head": True,
        "scaled_logits": True,
        "moe": moe if num_experts else MoEConfig(),
    }
    return t5_1_1(num_heads, **{**shared, **size})


def llama(num_heads: int, num_kv_heads: int, **size: Any) -> ModelConfig:
    """Llama (arXiv:2302.13971) and, with experts, Mixtral (arXiv:2401.04088): pre-norm RMS, RoPE, SwiGLU, untied."""
    shared = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "block": "pre_norm",
        "norm": "rms",
        "norm_epsilon": 1e-5,
        "tied_head": False,
        "scaled_logits": False,
        "init": "megatron",
    }
    return ModelConfig(**{**shared, **size})
