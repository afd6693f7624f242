"""`config.json` of Hugging Face and ours. What one cannot say is refused by the name of its field."""

from dataclasses import replace
from typing import Any

from pathways_lm.config import ModelConfig, MoEConfig
from pathways_lm.errors import CheckpointError
from pathways_lm.models import presets

Foreign = dict[str, Any]

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
_GATES = {"silu": "swiglu", "gelu_new": "geglu", "gelu_pytorch_tanh": "geglu"}


def _refuse(config: Foreign, **needed: Any) -> None:
    """Raises CheckpointError for a field that is there and not as needed."""
    for field, value in needed.items():
        if config.get(field, value) != value:
            raise CheckpointError(f"config.json: {field}={config[field]!r} is not supported, only {value!r}")


def _choice(config: Foreign, field: str, known: dict[str, str]) -> str:
    value = str(config[field])
    if value not in known:
        raise CheckpointError(f"config.json: {field}={value!r} is not supported, only {', '.join(map(repr, known))}")
    return known[value]


def from_gpt2(config: Foreign, tensors: set[str]) -> ModelConfig:
    _refuse(config, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True, add_cross_attention=False)
    return presets.megatron_gpt2(
        config["n_layer"],
        config["n_embd"],
        config["n_head"],
        mlp_dim=config.get("n_inner") or 4 * config["n_embd"],
        vocab_size=config["vocab_size"],
        max_length=config["n_positions"],
        norm_epsilon=config["layer_norm_epsilon"],
        activation=_choice(config, "activation_function", _ACTIVATIONS),
        dropout=float(config["resid_pdrop"]),
    )


def to_gpt2(model: ModelConfig) -> Foreign:
    return {
        "n_layer": model.num_layers,
        "n_embd": model.embed_dim,
        "n_head": model.num_heads,
        "n_inner": model.mlp_dim,
        "vocab_size": model.vocab_size,
        "n_positions": model.max_length,
        "layer_norm_epsilon": model.norm_epsilon,
        "activation_function": _foreign(_ACTIVATIONS, model.activation),
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout),
    }


def from_bert(config: Foreign, tensors: set[str]) -> ModelConfig:
    _refuse(config, position_embedding_type="absolute", is_decoder=False)
    return presets.bert(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_length=config["max_position_embeddings"],
        token_types=config["type_vocab_size"],
        norm_epsilon=config["layer_norm_eps"],
        activation=_choice(config, "hidden_act", _ACTIVATIONS),
        dropout=float(config["hidden_dropout_prob"]),
    )


def to_bert(model: ModelConfig) -> Foreign:
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.embed_dim,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_length,
        "type_vocab_size": model.token_types,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_act": _foreign(_ACTIVATIONS, model.activation),
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), model.dropout),
    }


def from_t5(config: Foreign, tensors: set[str]) -> ModelConfig:
    kind = config.get("feed_forward_proj", "relu")
    gated = kind.startswith("gated-")
    activation = {"gelu": "gelu_new"}.get(kind.removeprefix("gated-"), kind.removeprefix("gated-")) if gated else kind
    # Some versions say "tied" of all and leave the head beside it: then what is there decides.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    untied = "lm_head.weight" in tensors and not scaled
    return presets.t5(
        config["num_heads"],
        num_layers=config.get("num_decoder_layers") or config["num_layers"],
        num_encoder_layers=config["num_layers"],
        embed_dim=config["d_model"],
        head_dim=config["d_kv"],
        mlp_dim=config["d_ff"],
        vocab_size=config["vocab_size"],
        activation=_choice({"feed_forward_proj": activation}, "feed_forward_proj", _GATES if gated else _ACTIVATIONS),
        norm_epsilon=config["layer_norm_epsilon"],
        relative_buckets=config["relative_attention_num_buckets"],
        relative_max_distance=config.get("relative_attention_max_distance", 128),
        tied_head=not untied,
        scaled_logits=scaled,
        dropout=float(config["dropout_rate"]),
        hidden_dropout=float(config["dropout_rate"]),
    )


def to_t5(model: ModelConfig) -> Foreign:
    gate = {"geglu": "gated-gelu", "swiglu": "gated-silu"}
    return {
        "num_heads": model.num_heads,
        "num_layers": model.num_encoder_layers or model.num_layers,
        "num_decoder_layers": model.num_layers,
        "d_model": model.embed_dim,
        "d_kv": model.head_dim,
        "d_ff": model.mlp_dim,
        "vocab_size": model.vocab_size,
        "feed_forward_proj": gate.get(model.activation) or _foreign(_ACTIVATIONS, model.activation),
        "layer_norm_epsilon": model.norm_epsilon,
        "relative_attention_num_buckets": model.relative_buckets,
        "relative_attention_max_distance": model.relative_max_distance,
        "tie_word_embeddings": model.tied_head,
        "scale_decoder_outputs": model.scaled_logits,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def from_switch(config: Foreign, tensors: set[str]) -> ModelConfig:
    _refuse(config, router_bias=False)
    every = config["encoder_sparse_step"]
    if config["decoder_sparse_step"] != every:
        raise CheckpointError(
            f"config.json: decoder_sparse_step={config['decoder_sparse_step']} is not "
            f"encoder_sparse_step={every}; both towers have one pattern here"
        )
    dense = from_t5({**config, "feed_forward_proj": config.get("dense_act_fn", "relu")}, tensors)
    moe = MoEConfig(
        num_experts=config["num_experts"],
        every=max(every, 1),
        offset=1 if every > 1 else 0,
        renormalise=False,
        # Theirs is a number of tokens; as many are the least here, and for 64 tokens an expert a sequence no more.
        min_capacity=config["expert_capacity"],
        capacity_factor=1.0,
        eval_capacity_factor=1.0,
        jitter=float(config["router_jitter_noise"]),
        balance_loss=float(config["router_aux_loss_coef"]),
        router_z_loss=float(config["router_z_loss_coef"]),
    )
    return replace(dense, moe=moe, init="truncated_fan_in", init_scale=0.1)


def to_switch(model: ModelConfig) -> Foreign:
    moe = model.moe
    if moe.every > 1 and moe.offset % moe.every != 1:
        raise CheckpointError(
            f"model.moe.offset={moe.offset} has no place in Hugging Face's Switch; its layers are 1, …"
        )
    layers, encoder_layers = model.num_layers, model.num_encoder_layers or model.num_layers
    return {
        **to_t5(model),
        "dense_act_fn": _foreign(_ACTIVATIONS, model.activation),
        "num_experts": moe.num_experts,
        "expert_capacity": max(moe.min_capacity, int(512 * moe.eval_capacity_factor / moe.num_experts)),
        "num_sparse_encoder_layers": encoder_layers // moe.every,
        "num_sparse_decoder_layers": layers // moe.every,
        "encoder_sparse_step": moe.every,
        "decoder_sparse_step": moe.every,
        "router_jitter_noise": moe.jitter,
        "router_aux_loss_coef": moe.balance_loss,
        "router_z_loss_coef": moe.router_z_loss,
    }


def from_llama(config: Foreign, tensors: set[str]) -> ModelConfig:
    _refuse(config, attention_bias=False, mlp_bias=False, sliding_window=None, hidden_act="silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise CheckpointError(f"config.json: rope_type={kind!r} is not supported, only 'default'")
    tied = bool(config.get("tie_word_embeddings", False))
    base = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return presets.llama(
        config["num_attention_heads"],
        config.get("num_key_value_heads") or config["num_attention_heads"],
        num_layers=config["num_hidden_layers"],
        embed_dim=config["hidden_size"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        rope_base=float(base),
        norm_epsilon=config["rms_norm_eps"],
        tied_head=tied,
    )


def to_llama(model: ModelConfig) -> Foreign:
    return {
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.embed_dim,
        "head_dim": model.head_dim,
        "intermediate_size": model.mlp_dim,
        "vocab_size": model.vocab_size,
        "rope_parameters": {"rope_theta": model.rope_base, "rope_type": "default"},
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_head,
    }


def from_mixtral(config: Foreign, tensors: set[str]) -> ModelConfig:
    dense = from_llama(config, tensors)
    moe = MoEConfig(
        num_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        every=1,
        dispatch="dropless",
        balance_loss=float(config["router_aux_loss_coef"]),
        jitter=float(config.get("router_jitter_noise", 0.0)),
    )
    return replace(dense, moe=moe)


def to_mixtral(model: ModelConfig) -> Foreign:
    return {
        **to_llama(model),
        "num_local_experts": model.moe.num_experts,
        "num_experts_per_tok": model.moe.top_k,
        "router_aux_loss_coef": model.moe.balance_loss,
        "router_jitter_noise": model.moe.jitter,
    }


def _foreign(known: dict[str, str], ours: str) -> str:
    for foreign, name in known.items():
        if name == ours:
            return foreign
    raise CheckpointError(f"model.activation={ours!r} has no name in this format")
