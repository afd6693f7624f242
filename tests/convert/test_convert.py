"""Into a run folder and back: every tensor as it was, and transformers loads what is written."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers

from pathways_lm.checkpoint.store import Store
from pathways_lm.convert import convert
from pathways_lm.convert.convert import export_checkpoint, import_checkpoint
from pathways_lm.convert.tensors import Reader


def assert_same_tensors(one, other):
    first, second = Reader(one), Reader(other)
    assert first.names() == second.names()
    for name in first.names():
        np.testing.assert_array_equal(first.read(name), second.read(name), err_msg=name)


def load(folder, like):
    model, info = type(like).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def test_there_and_back(published, tmp_path):
    _, torch_model, folder = published
    export_checkpoint(folder / "run", tmp_path / "back")
    assert_same_tensors(folder / "published", tmp_path / "back")
    loaded = load(tmp_path / "back", torch_model)
    expected, actual = torch_model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=0)
    # A copy: torch sums in another order where a tensor's address is odd, as it is in a file mapped into memory.
    loaded = copy.deepcopy(loaded)
    tokens = torch.arange(2, 14)[None]
    given = {"decoder_input_ids": tokens} if loaded.config.is_encoder_decoder else {}
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=tokens, **given)[0] for model in (loaded, torch_model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_in_several_files(published, tmp_path, monkeypatch):
    """As large models are published; read and written."""
    _, torch_model, folder = published
    torch_model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    import_checkpoint(tmp_path / "sharded", tmp_path / "run")
    monkeypatch.setattr(convert, "SHARD_BYTES", 30_000)
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    assert_same_tensors(folder / "published", tmp_path / "back")
    load(tmp_path / "back", torch_model)


def test_read_array_by_array(published, tmp_path, monkeypatch):
    """Each array is read once, and none with more than those that one tensor is made of."""
    _, _, folder = published
    asked = []
    read = Store.read

    def reading(self, step, item, part):
        asked.append([jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(part)])
        return read(self, step, item, part)

    monkeypatch.setattr(Store, "read", reading)
    export_checkpoint(folder / "run", tmp_path / "back")
    paths = [path for together in asked for path in together]
    assert len(set(paths)) == len(paths) == len(json.loads((folder / "run/parameters.json").read_text()))
    assert max(map(len, asked)) <= 3  # GPT-2's queries, keys and values are one tensor


def test_half_precision(published, tmp_path):
    """bf16 becomes fp32, which holds it exactly, and bf16 again."""
    family, torch_model, folder = published
    if family not in ("llama", "switch"):
        pytest.skip("one dense and one sparse family stand for all")
    half = type(torch_model).from_pretrained(folder / "published", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    import_checkpoint(tmp_path / "half", tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "back", dtype="bfloat16")
    assert_same_tensors(tmp_path / "half", tmp_path / "back")


def test_a_padded_vocabulary(published, tmp_path):
    """300 rows filled up to 320 with zeros, and cut again."""
    _, _, folder = published
    config = import_checkpoint(folder / "published", tmp_path / "run", pad_vocab=64)
    assert config.vocab_size == 320
    export_checkpoint(tmp_path / "run", tmp_path / "back", vocab_rows=300)
    assert_same_tensors(folder / "published", tmp_path / "back")


def test_a_model_that_no_format_can_say(published, tmp_path):
    family, _, folder = published
    if family != "llama":
        pytest.skip("a run folder to change")
    shutil.copytree(folder / "run", tmp_path / "run")
    values = json.loads((tmp_path / "run/config.json").read_text())
    values["model"]["norm_bias"] = True
    (tmp_path / "run/config.json").write_text(json.dumps(values))
    with pytest.raises(convert.CheckpointError, match=r"a llama checkpoint cannot say model\.norm_bias=True"):
        export_checkpoint(tmp_path / "run", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_versions():
    """What the names and configs were compared with."""
    assert int(transformers.__version__.split(".")[0]) >= 5
