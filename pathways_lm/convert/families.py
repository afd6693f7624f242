"""The checkpoints of Hugging Face that are known: their names beside ours, and their configs.

One table a family serves both directions. `{layer}` and `{expert}` count; a tower's layers stand for ours by number. A
row is left out where our model has no such array (a gate of an ungated MLP, the head of a tied model).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pathways_lm.config import ModelConfig
from pathways_lm.convert import configs


@dataclass(frozen=True)
class Row:
    """A foreign name, our path or paths (several: side by side in one tensor), and the layout between them."""

    foreign: str
    ours: str | tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class Family:
    """A `model_type` of Hugging Face.

    `rows` are of the whole model; `layers` of each layer, by our tower. `optional` foreign names repeat others or hold
    no numbers that matter, and may be there or not.
    """

    model_type: str
    architecture: str
    rows: tuple[Row, ...]
    layers: Mapping[str, tuple[Row, ...]]
    from_foreign: Callable[[dict[str, Any], set[str]], ModelConfig]
    to_foreign: Callable[[ModelConfig], dict[str, Any]]
    optional: tuple[str, ...] = ()


VECTOR, TRANSPOSED = "d -> d", "o i -> i o"
QUERY, OUT = "(n h) d -> d n h", "d (n h) -> n h d"
HEAD_BIAS = "(n h) -> n h"
TABLE = "v d -> v d"

GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    rows=(
        Row("transformer.wte.weight", "embedding/table", TABLE),
        Row("transformer.wpe.weight", "positions/table", "l d -> l d"),
        Row("transformer.ln_f.weight", "decoder/norm/scale", VECTOR),
        Row("transformer.ln_f.bias", "decoder/norm/bias", VECTOR),
    ),
    layers={
        "decoder": (
            Row("transformer.h.{layer}.ln_1.weight", "attention_norm/scale", VECTOR),
            Row("transformer.h.{layer}.ln_1.bias", "attention_norm/bias", VECTOR),
            Row(
                "transformer.h.{layer}.attn.c_attn.weight",
                ("attention/query", "attention/key", "attention/value"),
                "d (p n h) -> p d n h",
            ),
            Row(
                "transformer.h.{layer}.attn.c_attn.bias",
                ("attention/query_bias", "attention/key_bias", "attention/value_bias"),
                "(p n h) -> p n h",
            ),
            Row("transformer.h.{layer}.attn.c_proj.weight", "attention/out", "(n h) d -> n h d"),
            Row("transformer.h.{layer}.attn.c_proj.bias", "attention/out_bias", VECTOR),
            Row("transformer.h.{layer}.ln_2.weight", "mlp_norm/scale", VECTOR),
            Row("transformer.h.{layer}.ln_2.bias", "mlp_norm/bias", VECTOR),
            Row("transformer.h.{layer}.mlp.c_fc.weight", "mlp/up", "i o -> i o"),
            Row("transformer.h.{layer}.mlp.c_fc.bias", "mlp/up_bias", VECTOR),
            Row("transformer.h.{layer}.mlp.c_proj.weight", "mlp/down", "i o -> i o"),
            Row("transformer.h.{layer}.mlp.c_proj.bias", "mlp/down_bias", VECTOR),
        )
    },
    from_foreign=configs.from_gpt2,
    to_foreign=configs.to_gpt2,
    # A tied head, and masks that older versions kept as tensors.
    optional=("lm_head.weight", "transformer.h.{layer}.attn.bias", "transformer.h.{layer}.attn.masked_bias"),
)


def _linear(foreign: str, ours: str) -> tuple[Row, ...]:
    """A torch Linear with a bias."""
    return Row(f"{foreign}.weight", ours, TRANSPOSED), Row(f"{foreign}.bias", f"{ours}_bias", VECTOR)


def _norm(foreign: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{foreign}.weight", f"{ours}/scale", VECTOR), Row(f"{foreign}.bias", f"{ours}/bias", VECTOR)


_BERT = "bert.encoder.layer.{layer}"
BERT = Family(
    "bert",
    "BertForPreTraining",
    rows=(
        Row("bert.embeddings.word_embeddings.weight", "embedding/table", TABLE),
        Row("bert.embeddings.position_embeddings.weight", "positions/table", "l d -> l d"),
        Row("bert.embeddings.token_type_embeddings.weight", "token_types/table", "l d -> l d"),
        *_norm("bert.embeddings.LayerNorm", "embedding_norm"),
        *_linear("cls.predictions.transform.dense", "mlm/dense"),
        *_norm("cls.predictions.transform.LayerNorm", "mlm/norm"),
        Row("cls.predictions.bias", "mlm/bias", "v -> v"),
        Row("bert.pooler.dense.weight", "pooler/kernel", TRANSPOSED),
        Row("bert.pooler.dense.bias", "pooler/bias", VECTOR),
        Row("cls.seq_relationship.weight", "order/kernel", TRANSPOSED),
        Row("cls.seq_relationship.bias", "order/bias", VECTOR),
    ),
    layers={
        "encoder": (
            *(
                row
                for name in ("query", "key", "value")
                for row in (
                    Row(f"{_BERT}.attention.self.{name}.weight", f"attention/{name}", QUERY),
                    Row(f"{_BERT}.attention.self.{name}.bias", f"attention/{name}_bias", HEAD_BIAS),
                )
            ),
            Row(f"{_BERT}.attention.output.dense.weight", "attention/out", OUT),
            Row(f"{_BERT}.attention.output.dense.bias", "attention/out_bias", VECTOR),
            *_norm(f"{_BERT}.attention.output.LayerNorm", "attention_norm"),
            *_linear(f"{_BERT}.intermediate.dense", "mlp/up"),
            *_linear(f"{_BERT}.output.dense", "mlp/down"),
            *_norm(f"{_BERT}.output.LayerNorm", "mlp_norm"),
        )
    },
    from_foreign=configs.from_bert,
    to_foreign=configs.to_bert,
    optional=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids"),
)


def _t5_attention(prefix: str, foreign: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{prefix}.{foreign}.q.weight", f"{ours}/query", QUERY),
        Row(f"{prefix}.{foreign}.k.weight", f"{ours}/key", QUERY),
        Row(f"{prefix}.{foreign}.v.weight", f"{ours}/value", QUERY),
        Row(f"{prefix}.{foreign}.o.weight", f"{ours}/out", OUT),
        Row(f"{prefix}.layer_norm.weight", f"{ours}_norm/scale", VECTOR),
    )


def _t5_layer(tower: str, dense: str, sparse: bool) -> tuple[Row, ...]:
    block = f"{tower}.block.{{layer}}"
    last = f"{block}.layer.{2 if tower == 'decoder' else 1}"
    rows = _t5_attention(f"{block}.layer.0", "SelfAttention", "attention")
    if tower == "decoder":
        rows += _t5_attention(f"{block}.layer.1", "EncDecAttention", "cross")
    rows += (
        Row(f"{last}.layer_norm.weight", "mlp_norm/scale", VECTOR),
        Row(f"{last}.{dense}.wi_0.weight", "mlp/gate", TRANSPOSED),
        Row(f"{last}.{dense}.wi_1.weight", "mlp/up", TRANSPOSED),
        # An ungated MLP's; a model has one or the other.
        Row(f"{last}.{dense}.wi.weight", "mlp/up", TRANSPOSED),
        Row(f"{last}.{dense}.wo.weight", "mlp/down", TRANSPOSED),
    )
    if sparse:
        expert = f"{last}.{dense}.experts.expert_{{expert}}"
        rows += (
            Row(f"{last}.{dense}.router.classifier.weight", "moe/router", TRANSPOSED),
            Row(f"{expert}.wi_0.weight", "moe/gate", TRANSPOSED),
            Row(f"{expert}.wi_1.weight", "moe/up", TRANSPOSED),
            Row(f"{expert}.wi.weight", "moe/up", TRANSPOSED),
            Row(f"{expert}.wo.weight", "moe/down", TRANSPOSED),
        )
    return rows


_T5_ROWS = (
    Row("shared.weight", "embedding/table", TABLE),
    Row("lm_head.weight", "head/kernel", "v d -> d v"),
    *(
        row
        for tower in ("encoder", "decoder")
        for row in (
            Row(f"{tower}.final_layer_norm.weight", f"{tower}/norm/scale", VECTOR),
            Row(
                f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{tower}/relative_bias/table",
                "b n -> b n",
            ),
        )
    ),
)
_T5_OPTIONAL = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
    # Drawn and saved by old versions, and read by none.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    rows=_T5_ROWS,
    layers={tower: _t5_layer(tower, "DenseReluDense", sparse=False) for tower in ("encoder", "decoder")},
    from_foreign=configs.from_t5,
    to_foreign=configs.to_t5,
    optional=_T5_OPTIONAL,
)
SWITCH = Family(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    rows=_T5_ROWS,
    layers={tower: _t5_layer(tower, "mlp", sparse=True) for tower in ("encoder", "decoder")},
    from_foreign=configs.from_switch,
    to_foreign=configs.to_switch,
    optional=_T5_OPTIONAL,
)

_LLAMA = "model.layers.{layer}"
_LLAMA_ROWS = (
    Row("model.embed_tokens.weight", "embedding/table", TABLE),
    Row("lm_head.weight", "head/kernel", "v d -> d v"),
    Row("model.norm.weight", "decoder/norm/scale", VECTOR),
)
_LLAMA_ATTENTION = (
    Row(f"{_LLAMA}.input_layernorm.weight", "attention_norm/scale", VECTOR),
    Row(f"{_LLAMA}.self_attn.q_proj.weight", "attention/query", QUERY),
    Row(f"{_LLAMA}.self_attn.k_proj.weight", "attention/key", QUERY),
    Row(f"{_LLAMA}.self_attn.v_proj.weight", "attention/value", QUERY),
    Row(f"{_LLAMA}.self_attn.o_proj.weight", "attention/out", OUT),
    Row(f"{_LLAMA}.post_attention_layernorm.weight", "mlp_norm/scale", VECTOR),
)
LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    rows=_LLAMA_ROWS,
    layers={
        "decoder": (
            *_LLAMA_ATTENTION,
            Row(f"{_LLAMA}.mlp.gate_proj.weight", "mlp/gate", TRANSPOSED),
            Row(f"{_LLAMA}.mlp.up_proj.weight", "mlp/up", TRANSPOSED),
            Row(f"{_LLAMA}.mlp.down_proj.weight", "mlp/down", TRANSPOSED),
        )
    },
    from_foreign=configs.from_llama,
    to_foreign=configs.to_llama,
    optional=("lm_head.weight", "model.layers.{layer}.self_attn.rotary_emb.inv_freq"),
)
_MIXTRAL = f"{_LLAMA}.block_sparse_moe"
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    rows=_LLAMA_ROWS,
    layers={
        "decoder": (
            *_LLAMA_ATTENTION,
            Row(f"{_MIXTRAL}.gate.weight", "moe/router", TRANSPOSED),
            Row(f"{_MIXTRAL}.experts.{{expert}}.w1.weight", "moe/gate", TRANSPOSED),
            Row(f"{_MIXTRAL}.experts.{{expert}}.w3.weight", "moe/up", TRANSPOSED),
            Row(f"{_MIXTRAL}.experts.{{expert}}.w2.weight", "moe/down", TRANSPOSED),
        )
    },
    from_foreign=configs.from_mixtral,
    to_foreign=configs.to_mixtral,
    optional=("lm_head.weight",),
)

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (GPT2, BERT, T5, SWITCH, LLAMA, MIXTRAL)}
