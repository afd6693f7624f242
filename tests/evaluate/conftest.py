"""A model of GPT-2's form with random weights, as transformers has it and as a run folder, with our vocabulary."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from pathways_lm.data.vocabulary import Vocabulary, train_vocabulary
from pathways_lm.decode.form import Form
from pathways_lm.decode.sampling import Sampler
from pathways_lm.evaluate.scoring import Scored, Window

CONTEXT = 64


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """512 pieces learned from some of Python's documentation."""
    return Vocabulary(train_vocabulary([topics[name] for name in sorted(topics)[:30]], 512))


@pytest.fixture(scope="session")
def write_records() -> Callable[[Path, list[dict]], str]:
    """Writes a file of JSON lines, and returns its path."""

    def write(path: Path, records: list[dict]) -> str:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


@dataclass
class Said:
    text: str
    tokens: list[int]


class Scripted:
    """In place of a loaded run: what it writes and how it scores is given."""

    def __init__(self, vocabulary: Vocabulary, written: Callable[[str], str] = lambda prompt: "", context: int = 4096):
        self.vocabulary, self.context, self.form = vocabulary, context, Form(vocabulary.size, vocabulary.eod_id)
        self.written = written
        self.score: Callable[[Window], Scored] | None = None
        self.asked: list[tuple[str, Sampler, int, tuple[str, ...]]] = []

    def generate(self, prompts, sampler=None, num_tokens=200, stop=(), seed=0) -> list[Said]:
        self.asked += [(prompt, sampler, num_tokens, tuple(stop)) for prompt in prompts]
        texts = [self.written(prompt) for prompt in prompts]
        return [Said(text, self.vocabulary.encode(text)) for text in texts]

    def log_likelihoods(self, windows) -> list[Scored]:
        return [self.score(window) for window in windows]


@pytest.fixture(scope="session")
def scripted(vocabulary) -> Callable[..., Any]:
    """`scripted(written, context)` is such a run."""
    return lambda *arguments, **options: Scripted(vocabulary, *arguments, **options)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory, vocabulary) -> tuple[Any, Path]:
    """transformers' model, and the run folder that it was converted to."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocabulary.size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
    )
    folder = tmp_path_factory.mktemp("gpt2")
    return converted(lambda: transformers.GPT2LMHeadModel(config), folder, "tokenizer.model", vocabulary)


@pytest.fixture(scope="session")
def t5(tmp_path_factory, vocabulary) -> tuple[Any, Path]:
    """The same of an encoder-decoder."""
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = transformers.T5Config(vocab_size=vocabulary.size, **sizes, **ids)
    folder = tmp_path_factory.mktemp("t5")
    return converted(lambda: transformers.T5ForConditionalGeneration(config), folder, "spiece.model", vocabulary)


def converted(build: Callable[[], Any], folder: Path, tokenizer: str, vocabulary: Vocabulary) -> tuple[Any, Path]:
    """A model with random weights, large enough that what stands before a token makes a difference to it."""
    torch = pytest.importorskip("torch")
    from pathways_lm.convert.convert import import_checkpoint

    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            table = any(part in name for part in ("wte", "wpe", "shared"))
            noise = torch.randn_like(parameter) * (0.3 if table or parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
            parameter.copy_(noise + name.endswith(("ln_f.weight", "layer_norm.weight")))
    model.save_pretrained(folder / "published")
    (folder / "published" / tokenizer).write_bytes(vocabulary.model)
    import_checkpoint(folder / "published", folder / "run")
    return model, folder / "run"
