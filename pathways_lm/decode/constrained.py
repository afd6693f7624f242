"""Texts of a given form: which tokens may come next, from a regular expression or a JSON schema, by llguidance."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathways_lm.errors import ConfigError, UserError


@dataclass(frozen=True)
class Pieces:
    """A vocabulary, as llguidance asks for it."""

    tokens: Sequence[bytes]
    """Of each id, its text; empty for those that are none."""
    eos_token_id: int
    encode: Callable[[bytes], list[int]]
    bos_token_id: int | None = None

    def __call__(self, text: bytes) -> list[int]:
        """Token ids of a text."""
        return self.encode(text)


class Grammar:
    """What a continuation as a whole must be like.

    Args:
      regex: a regular expression that all of it matches (Rust's syntax).
      json_schema: a JSON schema, as text; the continuation is a JSON value.

    Raises:
      ConfigError: either is malformed.
      UserError: llguidance is not installed.
    """

    def __init__(self, pieces: Pieces, regex: str = "", json_schema: str = ""):
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise UserError(
                "a regular expression or schema needs llguidance: pip install 'pathways-lm[generate]'"
            ) from error
        if bool(regex) == bool(json_schema):
            raise ConfigError("a continuation follows either a regular expression or a JSON schema")
        if regex:
            grammar = llguidance.LLMatcher.grammar_from_regex(regex)
        else:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(_schema(json_schema))
        problem = llguidance.LLMatcher.validate_grammar(grammar)
        if problem:
            name = f"regular expression {regex!r}" if regex else "JSON schema"
            # Behind the reason stands the grammar that it was made into.
            reason = " ".join(problem.split()).split("error: ")[-1].split(" 1 | ")[0]
            raise ConfigError(f"{name} cannot be used: {reason}")
        # Tokens without text are special: no grammar's text has them.
        special = [token for token, text in enumerate(pieces.tokens) if not text]
        wrapped: Any = llguidance.TokenizerWrapper(pieces)
        wrapped.special_token_ids = special
        self._tokenizer = llguidance.LLTokenizer(wrapped)
        self._grammar, self._matcher = grammar, llguidance.LLMatcher
        self.size = len(pieces.tokens)

    def guide(self) -> "Guide":
        """A new text's guide."""
        return Guide(self._matcher(self._tokenizer, self._grammar), self.size)


class Guide:
    """How far one continuation has come."""

    def __init__(self, matcher: Any, size: int):
        self._matcher, self._size = matcher, size

    def allowed(self) -> np.ndarray:
        """Which tokens may come next, bool [vocabulary]. The end may where the text is complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._size].astype(bool)

    def take(self, token: int) -> None:
        """Goes on by one of the allowed tokens."""
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} was not allowed: {self._matcher.get_error()}")


def _schema(text: str) -> str:
    try:
        return json.dumps(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"JSON schema cannot be read: {error}") from None
