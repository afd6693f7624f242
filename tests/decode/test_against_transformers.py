"""Token for token what transformers' `generate` writes, with the same random weights: 64 prompts of uneven length."""

from contextlib import closing
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig
from pathways_lm.convert.convert import import_checkpoint
from pathways_lm.decode.beam import Beams, BeamSearch
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules

PIECES, END, NEW = 300, 1, 12
LENGTHS = (3, 4, 7, 9, 12, 15, 20, 26)
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(2, PIECES, length).tolist() for length in LENGTHS for _ in range(8)]


class Pair(NamedTuple):
    """One model twice."""

    theirs: object
    generator: Generator
    params: dict


def published(family: str):
    """With weights so large that no two tokens are as good as each other."""
    torch.manual_seed(1)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=PIECES, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=END
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.T5Config(
            vocab_size=PIECES,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        )
        model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn_like(parameter) + (0 if name.endswith("bias") else 1))
            elif "shared" in name or "wte" in name:
                parameter.copy_(torch.randn_like(parameter) * (1 if family == "t5" else 0.3))
                # Often likely, so that of the hypotheses some end and some are cut.
                parameter[END] *= 2
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 * parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def pair(request, tmp_path_factory) -> Pair:
    torch.set_num_threads(1)
    theirs, folder = published(request.param), tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder / "published")
    import_checkpoint(folder / "published", folder / "run")
    config = RunFolder(folder / "run").experiment().model
    model = Model(config, make_rules("palm_2d", make_mesh(MeshConfig(data=1))))
    with closing(Store(folder / "run", readonly=True)) as store:
        params = store.restore({"params": model.abstract}, print)[1]["params"]
    encoder = request.param == "t5"
    form = Form(PIECES, END, encoder, closing=(END,) if encoder else (), begin=0 if encoder else None, never=())
    return Pair(theirs, Generator(model, form, context=64, rows=256), params)


def generate(pair: Pair, **options):
    """What transformers writes after each prompt, up to the end, and the scores of searches: of prompts of one length
    together, so that nothing is padded."""
    form, found, scores = pair.generator.form, [], []
    for length in LENGTHS:
        alike = [prompt for prompt in PROMPTS if len(prompt) == length]
        ids = torch.tensor([form.read(prompt) for prompt in alike])
        with torch.no_grad():
            out = pair.theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                pad_token_id=0,
                eos_token_id=END,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
        begin = 1 if form.encoder else ids.shape[1]
        found += [upto(row[begin:].tolist()) for row in out.sequences]
        scores += [] if options.get("num_beams", 1) == 1 else out.sequences_scores.tolist()
    return found, scores


def upto(ids: list[int]) -> list[int]:
    """Before the end."""
    return ids[: ids.index(END)] if END in ids else ids[:NEW]


def test_one_beam_is_greedy(pair):
    expected, _ = generate(pair, do_sample=False)
    found = BeamSearch(pair.generator).search(pair.params, PROMPTS, Beams(num_beams=1), NEW)
    assert [one.tokens for (one,) in found] == expected


@pytest.fixture(scope="module")
def search(pair):
    return BeamSearch(pair.generator)


@pytest.mark.parametrize("early", [False, True], ids=["", "early"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
def test_four_beams(pair, search, penalty, early):
    """All four hypotheses of each prompt, in their order and with their scores."""
    expected, scores = generate(
        pair, num_beams=4, num_return_sequences=4, length_penalty=penalty, early_stopping=early, do_sample=False
    )
    beams = Beams(4, length_penalty=penalty, early_stopping=early, num_return=4)
    found = [one for row in search.search(pair.params, PROMPTS, beams, NEW) for one in row]
    assert [one.tokens for one in found] == expected
    np.testing.assert_allclose([one.score for one in found], scores, rtol=2e-5)
    whys = [one.why for one in found]
    print(penalty, early, whys.count("end"), whys.count("length"))
