"""lm-evaluation-harness itself, on local files: our adapter against its own model of transformers, equal weights."""

import json
import math
import os
from pydoc_data.topics import topics

import pytest

# Nothing is looked for elsewhere than on this machine; read when the following are imported.
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("lm_eval")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import lm_eval
import torch
import transformers
import yaml
from lm_eval.tasks import TaskManager

import pathways_lm
from pathways_lm.errors import ConfigError
from pathways_lm.evaluate import harness
from pathways_lm.evaluate.few_shot import Template, fill
from pathways_lm.evaluate.lambada import lambada
from pathways_lm.evaluate.ranking import rank
from pathways_lm.evaluate.records import Record
from pathways_lm.evaluate.texts import likelihoods, perplexities

# Of the model, tests/evaluate/conftest.py.
CONTEXT = 64
TASKS = {
    "local_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "local_lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
    },
    "local_ranking": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_mutual_info")],
    },
    "local_generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", " the"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def said_next(gpt2, vocabulary, passages: list[str]) -> list[str]:
    """Of passages after which torch's model says a whole word, the passage and that word."""
    found = []
    for passage in passages:
        read = torch.tensor([[0, *vocabulary.encode(passage)][-CONTEXT:]])
        with torch.no_grad():
            word = vocabulary.decode([int(gpt2[0](read).logits[0, -1].argmax())])
        if word.startswith(" ") and word.strip() and " " not in word[1:]:
            found.append(passage + word)
    return found


def records() -> dict[str, list[dict]]:
    """Some fit the context of 64 tokens and some do not; some have no context, or end it in white space."""
    pages = [topics[name] for name in sorted(topics) if len(topics[name]) > 1200][:12]
    words = [page.split() for page in pages]
    endings = [[" ".join(part[number : number + 4]) for number in (8, 20, 33)] for part in words]
    queries = [" ".join(part[: 4 * number]) + (" \n" if number % 3 == 2 else "") for number, part in enumerate(words)]
    ranking = [
        {"query": query, "choices": choices, "label": number % 3}
        for number, (query, choices) in enumerate(zip(queries, endings, strict=True))
    ]
    passages = [" ".join(part[: 3 + 5 * number]) for number, part in enumerate(words)]
    texts = [page[: 20 + 90 * number] for number, page in enumerate(pages)]
    return {
        "local_rolling": [{"text": text} for text in [*texts, "é \u2581 x"]],
        "local_lambada": [{"text": passage} for passage in passages],
        "local_ranking": ranking,
        "local_generation": ranking[1:5],
    }


class Tokenizer(transformers.PreTrainedTokenizer):
    """Our vocabulary, as transformers asks for one; id 0 is the beginning, and put before texts only when asked."""

    def __init__(self, vocabulary):
        self.ours = vocabulary
        super().__init__(bos_token="<pad>", eos_token="<eod>", unk_token="<unk>", pad_token="<eod>")

    @property
    def vocab_size(self):
        return self.ours.size

    def get_vocab(self):
        return {self.ours._processor.id_to_piece(number): number for number in range(self.ours.size)}

    def _convert_token_to_id(self, token):
        return self.ours._processor.piece_to_id(token)

    def _convert_id_to_token(self, number):
        return self.ours._processor.id_to_piece(number)

    def encode(self, text, add_special_tokens=False, **options):
        return [0] * bool(add_special_tokens) + self.ours.encode(text)

    def decode(self, token_ids, skip_special_tokens=False, **options):
        ids = torch.as_tensor(token_ids).tolist()
        if ids and isinstance(ids, list) and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens) for row in ids]
        ids = [ids] if isinstance(ids, int) else ids
        special = {0: "<pad>", 1: "<eod>"}
        if ids and not skip_special_tokens and ids[0] in special:
            return special[ids[0]]
        return self.ours.decode(ids)

    def __call__(self, texts, add_special_tokens=True, **options):
        rows = [self.encode(text, add_special_tokens) for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[1] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask})


class EncoderTokenizer(Tokenizer):
    """As T5's: the end closes what an encoder reads, and nothing stands before it."""

    bos_token_id = None

    def encode(self, text, add_special_tokens=True, **options):
        return self.ours.encode(text) + [1] * bool(add_special_tokens)


@pytest.fixture(scope="module")
def rows(gpt2, vocabulary) -> dict[str, list[dict]]:
    """Those, and passages whose last word is what the model would say."""
    rows = records()
    words = topics["assert"].split()
    greedy = said_next(gpt2, vocabulary, [" ".join(words[:count]) for count in range(2, 40)])[:4]
    assert len(greedy) > 1
    return {**rows, "local_lambada": [*rows["local_lambada"], *({"text": text} for text in greedy)]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, rows):
    """The harness's way to the tasks' files."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        described = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / f"{name}.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **TASKS[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(described))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def ours(gpt2):
    harness.register(pathways_lm.load)
    return gpt2[1]


def evaluate(tasks, model, name: str, **options) -> tuple[dict, list]:
    """The harness's figures, and its answers request by request."""
    found = lm_eval.simple_evaluate(
        model=model, tasks=[name], task_manager=tasks, log_samples=True, bootstrap_iters=0, **options
    )
    figures = {key.split(",")[0]: value for key, value in found["results"][name].items() if "stderr" not in key}
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return figures, [sample["filtered_resps"] for sample in samples]


def theirs(gpt2, vocabulary, beginning: bool):
    """With the beginning before each context, as ours is given it; windows over texts have it by themselves."""
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=gpt2[0], tokenizer=Tokenizer(vocabulary), backend="causal", batch_size=4, add_bos_token=beginning
    )


def numbers(figures: dict) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


@pytest.mark.parametrize(
    ("name", "beginning"), [("local_rolling", False), ("local_lambada", True), ("local_ranking", True)]
)
def test_the_same_as_transformers(gpt2, vocabulary, tasks, rows, ours, name, beginning):
    expected, their_answers = evaluate(tasks, theirs(gpt2, vocabulary, beginning), name)
    figures, answers = evaluate(tasks, "pathways_lm", name, model_args=f"run={ours},overrides=mesh.tensor=4")
    assert set(TASKS[name]["metric_list"][0].values()) <= set(figures)
    assert numbers(figures) == pytest.approx(numbers(expected), rel=1e-5)
    if name == "local_lambada":
        assert 0 < figures["acc"] < 1
    agree(answers, their_answers, len(rows[name]))


@pytest.mark.parametrize("name", ["local_lambada", "local_ranking"])
def test_the_same_as_an_encoder_decoder_of_transformers(t5, vocabulary, tasks, rows, ours, name):
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    model, run = t5
    peer = HFLM(pretrained=model, tokenizer=EncoderTokenizer(vocabulary), backend="seq2seq", batch_size=4)
    expected, their_answers = evaluate(tasks, peer, name)
    figures, answers = evaluate(tasks, "pathways_lm", name, model_args=f"run={run}")
    assert numbers(figures) == pytest.approx(numbers(expected), rel=1e-5)
    agree(answers, their_answers, len(rows[name]))


def agree(answers: list, their_answers: list, at_least: int) -> None:
    """In what is likely to 1e-4 nats (of thousands, to 1e-6 of them), and in what is greedy."""
    flat = [value for sample in answers for value in (sample if isinstance(sample, list) else [sample])]
    their_flat = [value for sample in their_answers for value in (sample if isinstance(sample, list) else [sample])]
    assert len(flat) == len(their_flat) >= at_least
    for found, wanted in zip(flat, their_flat, strict=True):
        (total, greedy), (their_total, their_greedy) = (
            (v, None) if isinstance(v, float) else v for v in (found, wanted)
        )
        assert total == pytest.approx(their_total, abs=1e-4, rel=1e-6)
        assert greedy == their_greedy


def test_the_same_texts(gpt2, vocabulary, tasks, ours):
    """Greedily written up to a stop string, the end or so many tokens; contexts cut on their left."""
    expected, their_texts = evaluate(tasks, theirs(gpt2, vocabulary, True), "local_generation")
    figures, texts = evaluate(tasks, "pathways_lm", "local_generation", model_args=f"run={ours}")
    assert texts == their_texts
    assert figures == expected
    assert len({text for (text,) in texts}) > 1


def test_our_own_figures_are_the_harness_s(tasks, rows, ours):
    """`--perplexity` and `--lambada` of the command line, against the harness on the same run."""
    trained = pathways_lm.load(str(ours))
    expected, _ = evaluate(tasks, harness.register(pathways_lm.load)(trained), "local_rolling")
    texts = [record["text"] for record in rows["local_rolling"]]
    found = perplexities(likelihoods(trained, texts))
    assert {name: found[name] for name in numbers(expected)} == pytest.approx(numbers(expected), rel=1e-6)
    expected, _ = evaluate(tasks, harness.register(pathways_lm.load)(trained), "local_lambada")
    found = lambada(trained, [("", record["text"]) for record in rows["local_lambada"]], cut=True)
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert found["accuracy"] == expected["acc"]
    assert math.isfinite(found["perplexity"])


def test_our_own_ranking_is_the_harness_s(tasks, rows, ours):
    """`--file` and `--template`, without examples before the question."""
    trained = pathways_lm.load(str(ours))
    expected, answers = evaluate(tasks, harness.register(pathways_lm.load)(trained), "local_ranking")
    template = Template(inputs="{query}", choices="{choices}", target="{label}", unconditional="")
    questions = [fill(template, Record("", record)) for record in rows["local_ranking"]]
    figures, told = rank(trained, template, questions, [question.inputs for question in questions], cut=True)
    assert {name: figures[name] for name in ("acc", "acc_norm", "acc_mutual_info")} == numbers(expected)
    for one, sample in zip(told, answers, strict=True):
        assert one["log_probs"] == pytest.approx([total for total, _ in sample][:3], rel=1e-6)


def test_arguments(ours):
    model = harness.register(pathways_lm.load)
    assert model(run=str(ours), max_length=32, batch_size=4, device="cpu").max_length == 32
    with pytest.raises(ConfigError, match="model_args has no 'pretrained'; it has run, overrides and max_length"):
        model(run=str(ours), pretrained="x")
