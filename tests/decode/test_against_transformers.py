"""Token for token what transformers' `generate` writes, with the same random weights: 64 prompts of uneven length."""

from contextlib import closing
from typing import NamedTuple

import jax
import numpy as np
import pytest

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import MeshConfig
from pathways_lm.convert.convert import import_checkpoint
from pathways_lm.decode.beam import Beams, BeamSearch
from pathways_lm.decode.contrastive import Contrastive, ContrastiveSearch
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import History, Sampler
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import make_rules

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PIECES, END, NEW = 300, 1, 12
LENGTHS = (3, 8, 15, 26)
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(2, PIECES, length).tolist() for length in LENGTHS for _ in range(16)]


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


def batches(form: Form):
    """Numbers of prompts that transformers is given together, and their ids: an encoder's padded behind, which a mask
    says, a decoder's of one length, as penalties there count padding."""
    sets = [slice(0, 64)] if form.encoder else [slice(first, first + 16) for first in range(0, 64, 16)]
    for numbers in sets:
        read = [torch.tensor(form.read(prompt)) for prompt in PROMPTS[numbers]]
        yield numbers, torch.nn.utils.rnn.pad_sequence(read, batch_first=True)


def generate(pair: Pair, processors=lambda numbers: None, **options):
    """What transformers writes after each prompt, up to the end, and the scores of searches."""
    form, found, scores = pair.generator.form, [], []
    for numbers, ids in batches(pair.generator.form):
        with torch.no_grad():
            out = pair.theirs.generate(
                ids,
                attention_mask=(ids != 0).long(),
                max_new_tokens=NEW,
                pad_token_id=0,
                eos_token_id=END,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                logits_processor=processors(numbers),
                **options,
            )
        begin = 1 if form.encoder else ids.shape[1]
        found += [upto(row[begin:].tolist()) for row in out.sequences]
        scores += [] if options.get("num_beams", 1) == 1 else out.sequences_scores.tolist()
    return found, scores


def upto(ids: list[int]) -> list[int]:
    """Before the end."""
    return ids[: ids.index(END)] if END in ids else ids[:NEW]


@pytest.fixture(scope="module")
def greedy(pair) -> list[list[int]]:
    return generate(pair)[0]


def test_greedy(pair, greedy):
    written = pair.generator.write(pair.params, PROMPTS, Sampler(temperature=0), NEW, jax.random.key(0))
    assert [one.tokens for one in written] == greedy
    assert {one.why for one in written} == {"end", "length"}


def test_one_beam_is_greedy(pair, greedy):
    found = BeamSearch(pair.generator).search(pair.params, PROMPTS, Beams(num_beams=1), NEW)
    assert [one.tokens for (one,) in found] == greedy


@pytest.fixture(scope="module")
def search(pair) -> BeamSearch:
    return BeamSearch(pair.generator)


@pytest.mark.parametrize(
    ("penalty", "early"), [(0.0, False), (0.6, False), (0.6, True), (1.0, False), (2.0, False), (2.0, True)]
)
def test_four_beams(pair, search, penalty, early):
    """All four hypotheses of each prompt, in their order and with their scores."""
    expected, scores = generate(pair, num_beams=4, num_return_sequences=4, length_penalty=penalty, early_stopping=early)
    beams = Beams(4, length_penalty=penalty, early_stopping=early, num_return=4)
    found = [one for row in search.search(pair.params, PROMPTS, beams, NEW) for one in row]
    assert [one.tokens for one in found] == expected
    np.testing.assert_allclose([one.score for one in found], scores, rtol=2e-5)
    # With a high penalty those that end early are all left behind.
    assert {one.why for one in found} == {"end", "length"} or penalty == 2.0


class Noise(transformers.LogitsProcessor):
    """Adds what our draws are decided by: the likeliest is then what is drawn (Gumbel-max)."""

    def __init__(self, noise_PTV: np.ndarray):
        self.noise_PTV = torch.tensor(noise_PTV)

    def __call__(self, input_ids, scores):
        return scores + self.noise_PTV[:, input_ids.shape[1]]


def noise_of(key, longest: int) -> np.ndarray:
    """For each prompt's number and each place of a token, [64, longest, V]."""

    def one(number, at):
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, number), at), (PIECES,), np.float32)

    return np.array(jax.jit(jax.vmap(lambda n: jax.vmap(lambda at: one(n, at))(np.arange(longest))))(np.arange(64)))


def processors(sampler: Sampler) -> list:
    """What transformers does for the fields of a sampler."""
    made = []
    if sampler.repetition_penalty != 1:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty))
    if sampler.no_repeat_ngram:
        made.append(transformers.NoRepeatNGramLogitsProcessor(sampler.no_repeat_ngram))
    if sampler.temperature != 1:
        made.append(transformers.TemperatureLogitsWarper(sampler.temperature))
    if sampler.top_k:
        made.append(transformers.TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        made.append(transformers.TopPLogitsWarper(sampler.top_p))
    if sampler.min_p:
        made.append(transformers.MinPLogitsWarper(sampler.min_p))
    if sampler.typical_p < 1:
        made.append(transformers.TypicalLogitsWarper(sampler.typical_p))
    return made


SAMPLERS = [
    Sampler(temperature=1.3, top_k=40, top_p=0.8),
    Sampler(min_p=0.1, typical_p=0.7),
    Sampler(repetition_penalty=1.3, no_repeat_ngram=2, temperature=0.8, top_k=50, top_p=0.9),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["top-k, top-p", "min-p, typical", "all"])
def test_sampling_with_the_same_noise(pair, sampler):
    key = jax.random.key(3)
    noise_PTV = noise_of(key, max(LENGTHS) + NEW)

    def both(numbers):
        return transformers.LogitsProcessorList([*processors(sampler), Noise(noise_PTV[numbers])])

    expected, _ = generate(pair, both)
    written = pair.generator.write(pair.params, PROMPTS, sampler, NEW, key)
    assert [one.tokens for one in written] == expected


@pytest.mark.parametrize(
    "sampler",
    [
        *(Sampler(repetition_penalty=value) for value in (0.7, 1.2, 3.0)),
        *(Sampler(no_repeat_ngram=value) for value in (1, 2, 3, 5)),
        *(Sampler(temperature=value) for value in (0.3, 2.5)),
        *(Sampler(top_k=value) for value in (1, 17, 300)),
        *(Sampler(top_p=value) for value in (0.05, 0.5, 0.99)),
        *(Sampler(min_p=value) for value in (0.01, 0.3, 1.0)),
        *(Sampler(typical_p=value) for value in (0.1, 0.5, 0.95)),
        SAMPLERS[-1],
    ],
    ids=lambda sampler: ", ".join(f"{key}={value}" for key, value in vars(sampler).items() if value not in (0, 1)),
)
def test_processors_value_by_value(sampler):
    random = np.random.default_rng(5)
    logits_BV = random.normal(size=(16, PIECES)).astype(np.float32) * 3
    # Of three ids, so that sequences repeat.
    ids_BT = random.integers(4, 7, (16, 24))
    expected_BV = torch.tensor(logits_BV)
    for processor in processors(sampler):
        expected_BV = processor(torch.tensor(ids_BT), expected_BV)
    # Columns behind a sequence do not matter.
    tokens_BT = np.concatenate([ids_BT, np.full((16, 8), 5)], axis=1).astype(np.int32)
    history = History(tokens_BT, np.full(16, 24, np.int32), np.full(16, 10, np.int32))
    found_BV = np.asarray(sampler.logits(logits_BV, history))
    np.testing.assert_allclose(found_BV, expected_BV.numpy(), rtol=1e-6)


def contrast(pair: Pair, alpha: float, top_k: int) -> list[list[int]]:
    """Contrastive search (arXiv:2202.06417, equation 5), reading the whole text again for each candidate."""
    form, found = pair.generator.form, []
    for _, given in batches(form):
        copies = given.repeat_interleave(top_k, dim=0)

        def read(ids_RL, copies=copies):
            """What the last layer says of each token, of length 1, and probabilities of the next."""
            if form.encoder:
                text = {"input_ids": copies, "attention_mask": (copies != 0).long(), "decoder_input_ids": ids_RL}
            else:
                text = {"input_ids": ids_RL}
            out = pair.theirs(**text, output_hidden_states=True)
            h_RLD = (out.decoder_hidden_states if form.encoder else out.hidden_states)[-1]
            return torch.nn.functional.normalize(h_RLD, dim=-1), out.logits[:, -1].softmax(-1)

        ids_RL = torch.zeros((len(copies), 1), dtype=torch.long) if form.encoder else copies
        begin = ids_RL.shape[1]
        with torch.no_grad():
            p_BV = read(ids_RL)[1][::top_k]
            for _ in range(NEW):
                p_BK, token_BK = p_BV.topk(top_k)
                ids_RL = torch.cat([ids_RL, token_BK.reshape(-1, 1)], dim=1)
                h_RLD, p_RV = read(ids_RL)
                alike_BK = (h_RLD[:, :-1] @ h_RLD[:, -1:].mT).amax((1, 2)).reshape(-1, top_k)
                best_B = ((1 - alpha) * p_BK - alpha * alike_BK).argmax(-1)
                chosen_B = torch.arange(len(best_B)) * top_k + best_B
                p_BV, ids_RL = p_RV[chosen_B], ids_RL[chosen_B].repeat_interleave(top_k, dim=0)
        found += [upto(row[begin:].tolist()) for row in ids_RL[::top_k]]
    return found


@pytest.fixture(scope="module")
def contrastive_search(pair) -> ContrastiveSearch:
    return ContrastiveSearch(pair.generator)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_contrastive_search(pair, greedy, contrastive_search, alpha):
    expected = contrast(pair, alpha, 5)
    assert (expected == greedy) == (alpha == 0)
    written = contrastive_search.write(pair.params, PROMPTS, Contrastive(alpha, 5), NEW)
    assert [one.tokens for one in written] == expected
