"""`pathways-lm score`: the log-probability of every token of texts."""

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.errors import ConfigError, DataError
from pathways_lm.evaluate.continuations import check_room, encode_pair
from pathways_lm.evaluate.records import encodable, passages
from pathways_lm.evaluate.scoring import Scored, Window, rolling
from pathways_lm.language_model import LanguageModel, load


def main(arguments: argparse.Namespace) -> int:
    """Prints a line for each text, for each token, or JSON. Each text is scored by itself."""
    if arguments.stride is not None and arguments.stride < 1:
        raise ConfigError(f"--stride must be at least 1, not {arguments.stride}")
    if arguments.stride is not None and arguments.context is not None:
        raise ConfigError("--stride is for texts by themselves, without --context")
    if arguments.truncate and arguments.context is None:
        raise ConfigError("--truncate is for --context: texts by themselves are scored whatever their length")
    texts = passages(arguments.file) if arguments.file else _texts(arguments.text)
    prepare_devices(arguments, RunFolder(arguments.run).experiment().data.cache_dir)
    trained = load(arguments.run, arguments.overrides)
    windows = [_windows(trained, arguments, place, text) for place, text in texts]
    scored = iter(trained.log_likelihoods([window for own in windows for window in own]))
    lines = _json if arguments.json else _tokens if arguments.tokens else _summary
    for (_, text), own in zip(texts, windows, strict=True):
        parts = zip(*(next(scored) for _ in own), strict=True)
        ids = [token for window in own for token in window.said]
        for line in lines(trained, text, ids, Scored(*map(np.concatenate, parts))):
            print(line)
    return 0


def _texts(given: list[str]) -> list[tuple[str, str]]:
    """Raises DataError for a text of the command line that is empty or no UTF-8."""
    for text in given:
        encodable(text, "--text")
        if not text:
            raise DataError("--text: there is no token to score")
    return [(f"--text {text[:40]!r}", text) for text in given]


def _windows(trained: LanguageModel, arguments: argparse.Namespace, place: str, text: str) -> list[Window]:
    if arguments.context is None:
        return rolling(trained.form, trained.vocabulary.encode(text), trained.context, arguments.stride)
    window = encode_pair(trained.vocabulary, trained.form, arguments.context, text)
    return check_room(trained.form, [window], [place], trained.context, arguments.truncate)


def _summary(trained: LanguageModel, text: str, ids: list[int], scored: Scored) -> Iterator[str]:
    """Nats of all tokens, their number, perplexity per token and bits per byte, and how the text begins."""
    mean, size = -scored.total / len(ids), len(text.encode())
    bits = -scored.total / math.log(2) / size
    perplexity = math.exp(mean) if mean < 700 else math.inf
    yield f"{scored.total:12.4f} nats {len(ids):6} tokens {perplexity:10.4g} ppl {bits:8.4f} bits/byte  {text[:60]!r}"


def _tokens(trained: LanguageModel, text: str, ids: list[int], scored: Scored) -> Iterator[str]:
    """Nats of each token, a star where it is the likeliest, and its text."""
    yield from _summary(trained, text, ids, scored)
    for token, log_p, greedy in zip(ids, scored.log_probs, scored.greedy, strict=True):
        yield f"{log_p:12.4f} {'*' if greedy else ' '} {_said(trained, token)!r}"


def _json(trained: LanguageModel, text: str, ids: list[int], scored: Scored) -> Iterator[str]:
    values: dict[str, Any] = {"text": text, "log_likelihood": scored.total, "ids": ids}
    values["tokens"] = [_said(trained, token) for token in ids]
    values["log_probs"] = [float(value) for value in scored.log_probs]
    values["greedy"] = scored.greedy.tolist()
    yield json.dumps(values, ensure_ascii=False)


def _said(trained: LanguageModel, token: int) -> str:
    """A token's text; of a part of a character its bytes, as `\\xc3`."""
    return trained.vocabulary.decode_bytes([token]).decode(errors="backslashreplace")
