"""Log-probabilities against a log-softmax in numpy of each window's logits by itself, and windows against formulas."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from pathways_lm.config import MoEConfig
from pathways_lm.decode.form import Form
from pathways_lm.errors import ConfigError, DataError
from pathways_lm.evaluate.scoring import Scorer, Window, after, cut_left, length, rolling
from pathways_lm.models.batch import Batch

CONTEXT, SIZE, END = 48, 260, 1
FORMS = {
    "causal": Form(SIZE, END),
    "without_beginning": Form(SIZE, END, begin=None, never=()),
    "prefix": Form(SIZE, END, both_ways=True, closing=(END,)),
    "encoder": Form(SIZE, END, encoder=True, closing=(END,)),
}
# Of both lengths that are compiled, in no order, and more of one than there are rows.
LENGTHS = [(4, 3), (20, 18), (0, 1), (4, 3), (4, 3), (0, 1)]


def shape(form: Form) -> dict:
    return {"shape": "encoder_decoder", "num_encoder_layers": 2, "block": "pre_norm"} if form.encoder else {}


def windows_of(form: Form) -> list[Window]:
    random = np.random.default_rng(7)
    ids = lambda size: random.integers(2, SIZE, size).tolist()  # noqa: E731
    return [after(form, ids(read), ids(said)) for read, said in LENGTHS]


def logits_alone(model, params, form: Form, window: Window) -> np.ndarray:
    """[said, V] in fp64, of the window in a batch of its own without padding."""
    read = np.array(window.read, np.int32)[None]
    if form.encoder:
        tokens = np.array([0, *window.said[:-1]], np.int32)[None]
        batch = Batch(tokens, tokens, encoder_tokens=read)
    else:
        tokens = np.array([*window.read, *window.said[:-1]], np.int32)[None]
        prefix = np.arange(tokens.shape[1])[None] < read.shape[1] if form.both_ways else None
        batch = Batch(tokens, tokens, prefix=prefix)
    call = jax.jit(lambda params, batch: model.bind(params)(batch).logits_BLV)
    logits = call(params, jax.device_put(batch, model.rules(None, None)))
    return np.asarray(logits, np.float64)[0, -len(window.said) :]


@pytest.fixture(scope="module", params=["causal", "prefix", "encoder"])
def alone(request, make, draw):
    """A form, its windows, and each one's logits."""
    form = FORMS[request.param]
    model = make(num_layers=2, **shape(form))
    params, windows = draw(model), windows_of(form)
    return form, windows, [logits_alone(model, params, form, window) for window in windows]


@pytest.mark.parametrize(
    ("preset", "data", "tensor"), [("palm_2d", 1, 1), ("palm_2d", 2, 4), ("sequence_parallel", 4, 2)]
)
def test_every_form_on_every_mesh(make, draw, alone, preset, data, tensor):
    form, windows, logits = alone
    model = make(preset, data, tensor, num_layers=2, **shape(form))
    told, scorer = [], Scorer(model, form, CONTEXT, rows=3)
    scorer.report = lambda *counts: told.append(counts)
    scored = scorer(draw(model), windows)
    assert told[-1] == (len(windows), len(windows))
    assert len(told) > 1
    for window, found, logits_LV in zip(windows, scored, logits, strict=True):
        log_p_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
        expected = log_p_LV[np.arange(len(window.said)), window.said]
        np.testing.assert_allclose(found.log_probs, expected, atol=2e-5)
        assert found.greedy.tolist() == (logits_LV.argmax(-1) == window.said).tolist()
        assert found.total == pytest.approx(expected.sum(), abs=2e-4)


def test_what_is_greedy(make, draw, alone):
    """What the model itself says next, by each window's logits, is greedy; one other token among it is not."""
    form, windows, logits = alone
    model = make(num_layers=2, **shape(form))
    scorer, params = Scorer(model, form, CONTEXT, rows=3), draw(model)
    likeliest = [Window(window.read, [int(found[0].argmax())]) for window, found in zip(windows, logits, strict=True)]
    assert all(found.all_greedy for found in scorer(params, likeliest))
    others = [Window(window.read, [(window.said[0] + 1) % SIZE]) for window in likeliest]
    assert not any(found.all_greedy for found in scorer(params, others))


def test_experts_drop_nothing(make, draw):
    """Where training would drop tokens, windows are worth the same alone, side by side, and on another mesh."""
    # Half of the room that even shares would take.
    experts = MoEConfig(num_experts=4, every=1, top_k=2, eval_capacity_factor=0.5, capacity_factor=0.5)
    model, cut = make(num_layers=2, moe=experts), make("palm_2d", 2, 2, 2, num_layers=2, moe=experts)
    windows = windows_of(FORMS["causal"])
    one_by_one = Scorer(model, FORMS["causal"], CONTEXT, rows=1)
    expected = [one_by_one(draw(model), [window])[0] for window in windows]
    for other in (model, cut):
        found = Scorer(other, FORMS["causal"], CONTEXT, rows=6)(draw(other), windows)
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.log_probs, wanted.log_probs, atol=2e-5)


def test_equally_likely(make, draw):
    """With a table of zeros every token is: the first of them is greedy, as argmax has it."""
    model = make(num_layers=1)
    params = draw(model)
    params["embedding"]["table"] = 0 * params["embedding"]["table"]
    first, second = Scorer(model, FORMS["causal"], CONTEXT)(params, [Window([0], [0]), Window([0], [1])])
    assert (first.all_greedy, second.all_greedy) == (True, False)
    assert first.total == second.total == pytest.approx(-np.log(264))


def test_no_device_has_all_logits(make, draw):
    """With the vocabulary over eight devices, what is gathered or added up is never as wide as it."""
    model = make("tensor_parallel", tensor=8, num_layers=1)
    scorer = Scorer(model, FORMS["causal"], CONTEXT, rows=2)
    _, batch = next(scorer._batches([Window([0], [5, 6])]))
    compiled = scorer._score.lower(draw(model), jax.tree.map(scorer._place, batch)).compile().as_text()
    exchanged = re.findall(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)", compiled)
    assert exchanged
    assert not [shape for shape, _ in exchanged if "264" in shape]
    # The part of a device is there.
    assert "f32[2,32,33]" in compiled


def test_an_encoder_says_nothing(make):
    model = make(num_layers=1, shape="encoder", block="post_norm", positions="learned", max_length=64)
    with pytest.raises(ConfigError, match=r"model.shape='encoder' says nothing to be scored"):
        Scorer(model, FORMS["causal"], CONTEXT)


def test_what_does_not_fit(make, draw):
    scorer = Scorer(make(num_layers=1), FORMS["causal"], CONTEXT)
    with pytest.raises(DataError, match="49 tokens are more than the context of 48"):
        scorer({}, [Window([0] * 20, [5] * 30)])
    with pytest.raises(DataError, match="no token to score"):
        scorer({}, [Window([0], [])])
    kept = cut_left(FORMS["causal"], Window([0, *range(2, 40)], [5] * 30), CONTEXT)
    assert (kept.read[0], kept.read[-1], length(FORMS["causal"], kept)) == (21, 39, CONTEXT)
    with pytest.raises(DataError, match="50 tokens to be scored"):
        cut_left(FORMS["causal"], Window([0], [5] * 50), CONTEXT)


@pytest.mark.parametrize("name", FORMS)
@hypothesis.given(
    tokens=st.integers(0, 60), context=st.integers(4, 20), stride=st.integers(1, 18), largest=st.booleans()
)
def test_windows_score_each_token_once(name, tokens, context, stride, largest):
    """In order, after what truly stands before it, in no more tokens than the context, and as many as there are."""
    form, ids = FORMS[name], list(range(2, tokens + 2))
    most = context if form.encoder else context - len(form.closing)
    stride = None if largest else min(stride, most)
    windows = rolling(form, ids, context, stride)
    assert [token for window in windows for token in window.said] == ids
    for number, window in enumerate(windows):
        assert length(form, window) <= context
        read = [token for token in window.read if token > 1]
        start = ids.index(window.said[0])
        assert read == ids[start - len(read) : start]
        if number:
            assert len(window.said) <= (stride or most)
            assert read and (len(read) == start or length(form, window) == context)


def test_windows_of_the_harness():
    """What lm-evaluation-harness documents in `LM.loglikelihood_rolling` for ten tokens and a context of four."""
    windows = rolling(FORMS["causal"], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19], 4)
    assert windows == [
        ([0], [10, 11, 12, 13]),
        ([13], [14, 15, 16, 17]),
        ([15, 16, 17], [18, 19]),
    ]
    with pytest.raises(DataError, match="a stride of 5 tokens must be from 1 to 4"):
        rolling(FORMS["causal"], [10], 4, 5)
