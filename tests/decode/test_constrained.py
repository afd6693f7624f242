"""Continuations of a given form, whatever the model would rather say."""

import json
import re

import jax
import pytest

from pathways_lm.decode.constrained import Grammar, Pieces
from pathways_lm.decode.form import Form
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError

# Padding, the end, unknown; the bytes; two pieces of several characters.
TEXTS = [b"", b"", b"", *(bytes([byte]) for byte in range(256)), b"ab", b'"name"']
PIECES = Pieces(TEXTS, 1, lambda text: [3 + byte for byte in text])


@pytest.fixture(scope="module")
def write(make, draw):
    model = make()
    params, generator = draw(model, 1), Generator(model, Form(len(TEXTS), 1), 256, rows=2)

    def texts(grammar, num_tokens, count=3):
        guides = [grammar.guide() for _ in range(count)]
        sampler = Sampler(temperature=1.5)
        prompts = [[100 + number] for number in range(count)]
        written = generator.write(params, prompts, sampler, num_tokens, jax.random.key(0), guides=guides)
        return [(b"".join(TEXTS[token] for token in one.tokens).decode(), one.why) for one in written]

    return texts


def test_regular_expression(write):
    pattern = r"(ab|cd)+-[0-9]{2,4}(é|z)"
    for text, why in write(Grammar(PIECES, regex=pattern), 100, 4):
        assert why == "end"
        assert re.fullmatch(pattern, text)


def test_json_schema(write):
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["x", "yes"]}, "on": {"type": "boolean"}},
        "required": ["name", "on"],
        "additionalProperties": False,
    }
    for text, why in write(Grammar(PIECES, json_schema=json.dumps(schema)), 120):
        assert why == "end"
        value = json.loads(text)
        assert set(value) == {"name", "on"} and value["name"] in ("x", "yes") and isinstance(value["on"], bool)


def test_malformed():
    with pytest.raises(ConfigError, match=r"regular expression '\(ab' cannot be used: unclosed group"):
        Grammar(PIECES, regex="(ab")
    with pytest.raises(ConfigError, match=r"JSON schema cannot be read: .* line 1"):
        Grammar(PIECES, json_schema="{")
    with pytest.raises(ConfigError, match=r"JSON schema cannot be used: .*nonsense"):
        Grammar(PIECES, json_schema='{"type": "nonsense"}')
    with pytest.raises(ConfigError, match="either a regular expression or a JSON schema"):
        Grammar(PIECES)
