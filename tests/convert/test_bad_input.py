"""Foreign checkpoints that are not what they say; written by hand, without torch."""

import json
import struct

import numpy as np
import pytest

from pathways_lm.cli import main
from pathways_lm.convert.tensors import Reader

D, F, L, V = 8, 16, 2, 300
CONFIG = {
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": L,
    "hidden_size": D,
    "intermediate_size": F,
    "vocab_size": V,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def tensors() -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D), "model.norm.weight": (D,)}
    for layer in range(L):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": shape for name, shape in
                   {"q": (D, D), "k": (4, D), "v": (4, D), "o": (D, D)}.items()}  # fmt: skip
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (D, F)}
        shapes |= {f"{prefix}.{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(folder, values, config=CONFIG):
    folder.mkdir()
    header, at = {}, 0
    for name, value in values.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + b"".join(value.tobytes() for value in values.values())
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def refused(tmp_path, capsys):
    def call(source, *arguments) -> str:
        assert main(["convert", str(source), str(tmp_path / "target"), *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("pathways-lm: ")
        assert not (tmp_path / "target").exists()
        return lines[0]

    return call


def test_whole(tmp_path, capsys):
    values = tensors()
    source = save(tmp_path / "source", values)
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    back = Reader(tmp_path / "back")
    assert back.names() == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(back.read(name), value)


def test_all_problems_at_once(tmp_path, refused):
    values = tensors()
    del values["model.norm.weight"], values["model.layers.1.mlp.up_proj.weight"]
    values["model.layers.0.self_attn.q_proj.weight"] = np.zeros((D, D + 1), np.float32)
    values["model.layers.0.self_attn.q_proj.bias"] = np.zeros(D, np.float32)
    values["model.layers.2.mlp.up_proj.weight"] = np.zeros((F, D), np.float32)
    said = refused(save(tmp_path / "source", values))
    for problem in (
        "missing: model.layers.1.mlp.up_proj.weight (16, 8)",
        "missing: model.norm.weight (8,)",
        "unknown: model.layers.0.self_attn.q_proj.bias (8,)",
        "unknown: model.layers.2.mlp.up_proj.weight (16, 8)",
        "wrong shape: model.layers.0.self_attn.q_proj.weight is (8, 9), not (8, 8)",
    ):
        assert problem in said


@pytest.mark.parametrize("kept", [0.5, 0.999, 0.01, 0.0])
def test_cut_short(tmp_path, refused, kept):
    source = save(tmp_path / "source", tensors())
    file = source / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert str(file) in refused(source)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "model_type='mamba'; known are gpt2, bert, t5, switch_transformers, llama, mixtral"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_configs(tmp_path, refused, change, said):
    config = {name: value for name, value in {**CONFIG, **change}.items() if value is not None}
    assert said in refused(save(tmp_path / "source", tensors(), config))


def test_no_folder(tmp_path, refused):
    assert "is not there" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text(json.dumps(CONFIG))
    assert "holds no .safetensors file" in refused(tmp_path / "empty")


def test_a_target_is_never_overwritten(tmp_path, capsys):
    source = save(tmp_path / "source", tensors())
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine").write_text("x")
    assert main(["convert", str(source), str(tmp_path / "target")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine"]


def test_an_index_that_names_a_missing_file(tmp_path, refused):
    source = save(tmp_path / "source", tensors())
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused(source)
