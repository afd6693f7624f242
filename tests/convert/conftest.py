"""Models of transformers with random weights, where nothing is left at one or zero."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

T5 = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(family: str):
    """The torch model of a family, small, drawn from one seed."""
    torch.manual_seed(0)
    match family:
        case "gpt2":
            config = transformers.GPT2Config(
                vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
            )
            model = transformers.GPT2LMHeadModel(config)
        case "bert":
            config = transformers.BertConfig(
                vocab_size=300,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
            )
            model = transformers.BertForPreTraining(config)
        case "t5":
            model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
        case "t5_1_1":
            config = transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
            model = transformers.T5ForConditionalGeneration(config)
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        case "switch":
            config = transformers.SwitchTransformersConfig(
                **T5,
                num_experts=4,
                expert_capacity=64,
                num_sparse_encoder_layers=1,
                num_sparse_decoder_layers=1,
                router_jitter_noise=0.0,
            )
            model = transformers.SwitchTransformersForConditionalGeneration(config)
        case "llama":
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
        case "mixtral":
            config = transformers.MixtralConfig(**LLAMA, num_local_experts=4)
            model = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn_like(parameter) + (0 if name.endswith("bias") else 1))
            elif "shared" not in name and "wte" not in name and "lm_head" not in name:
                # Large enough that attention, gates and experts differ between tokens.
                parameter.copy_(torch.randn_like(parameter) * 1.5 * parameter.shape[-1] ** -0.5)
    return model.eval()


FAMILIES = ["gpt2", "bert", "t5", "t5_1_1", "switch", "llama", "mixtral"]


@pytest.fixture(scope="session", params=FAMILIES)
def published(request, tmp_path_factory):
    """A torch model, the folder it was saved to, and the run folder it was converted to."""
    from pathways_lm.convert.convert import import_checkpoint

    model = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "published")
    import_checkpoint(folder / "published", folder / "run")
    return request.param, model, folder
