"""EleutherAI's lm-evaluation-harness on runs of this package: its model `pathways_lm`, with `run=FOLDER`.

What is compared with other models is the harness's own: how contexts and continuations are tokenized, where a long
one is cut, how texts are windowed. What is different is what the model was trained with: a decoder that reads a
beginning before each document is given it before each context, as HFLM gives one with `add_bos_token=True`.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.evaluate.continuations import encode_pair, fit_prompts
from pathways_lm.evaluate.scoring import Window, cut_left, rolling
from pathways_lm.evaluate.trained import Trained

NAME = "pathways_lm"
# Most tokens that are written where a task does not say it: the harness's own choice.
_WRITTEN_TOKENS = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Load = Callable[[str, Sequence[str]], Trained]


@functools.cache
def register(load: Load) -> type:
    """Makes `pathways_lm` known to the harness, and returns its class.

    Its `model_args` are `run`, `overrides` (`mesh.tensor=4`, several with `;` between them) and `max_length`.

    Args:
      load: from a run folder and overrides to what is evaluated: `pathways_lm.load`.

    Raises ConfigError where the harness is not installed.
    """
    # Its resampling would fork this process, in which JAX has threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        # Late: it takes seconds, and only this needs it.
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise ConfigError("lm-evaluation-harness is not installed: make harness, or pip install lm-eval") from error

    class PathwaysLM(LM):
        """A run, as the harness asks of models."""

        def __init__(self, run: str | Trained, overrides: str = "", max_length: int | None = None, **others: Any):
            """`run` is a folder, or what was loaded already. `batch_size` and `device` are the mesh's business."""
            super().__init__()
            unknown = set(others) - {"batch_size", "max_batch_size", "device"}
            if unknown:
                raise ConfigError(f"model_args has no '{min(unknown)}'; it has run, overrides and max_length")
            self.trained = load(run, overrides.split(";") if overrides else []) if isinstance(run, str) else run
            self.max_length = min(max_length or self.trained.context, self.trained.context)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            answers = log_likelihoods(self.trained, pairs, self.max_length)
            for pair, answer in zip(pairs, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood", pair, answer)
            return answers

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            texts = [request.args[0] for request in requests]
            totals = rolling_log_likelihoods(self.trained, texts, self.max_length)
            for text, total in zip(texts, totals, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            return totals

        def generate_until(self, requests: list[Any]) -> list[str]:
            asked = [request.args for request in requests]
            texts = continuations(self.trained, asked, self.max_length)
            for one, text in zip(asked, texts, strict=True):
                self.cache_hook.add_partial("generate_until", one, text)
            return texts

    register_model(NAME)(PathwaysLM)
    return PathwaysLM


def log_likelihoods(trained: Trained, pairs: Sequence[tuple[str, str]], max_length: int) -> list[tuple[float, bool]]:
    """Of each continuation after its context: nats, and whether it is what greedy decoding would say."""
    windows = [encode_pair(trained.vocabulary, trained.form, *pair) for pair in pairs]
    scored = trained.log_likelihoods([cut_left(trained.form, window, max_length) for window in windows])
    return [(found.total, found.all_greedy) for found in scored]


def rolling_log_likelihoods(trained: Trained, texts: Sequence[str], max_length: int) -> list[float]:
    """Of whole texts, nats; an empty one has none."""
    windows: list[Window] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        own = rolling(trained.form, trained.vocabulary.encode(text), max_length)
        windows += own
        owners += [number] * len(own)
    totals = [0.0] * len(texts)
    for owner, scored in zip(owners, trained.log_likelihoods(windows), strict=True):
        totals[owner] += scored.total
    return totals


def continuations(trained: Trained, asked: Sequence[tuple[str, dict[str, Any]]], max_length: int) -> list[str]:
    """What is written after each context, by the harness's `generation_kwargs`, in order."""
    alike: dict[str, list[int]] = {}
    for number, (_, options) in enumerate(asked):
        alike.setdefault(repr(sorted(options.items())), []).append(number)
    texts = [""] * len(asked)
    for numbers in alike.values():
        options = asked[numbers[0]][1]
        num_tokens = int(next((options[name] for name in _LENGTHS if options.get(name)), _WRITTEN_TOKENS))
        until = options.get("until") or []
        stop = [until] if isinstance(until, str) else list(until)
        prompts, places = [asked[number][0] for number in numbers], [f"request {number}" for number in numbers]
        prompts = fit_prompts(trained, prompts, places, num_tokens, max_length, cut=True)
        for number, found in zip(
            numbers, trained.generate(prompts, _sampler(options), num_tokens, stop, 0), strict=True
        ):
            texts[number] = found.text
    return texts


def _sampler(options: dict[str, Any]) -> Sampler:
    """Greedy unless a task says that it draws, or names a temperature."""
    temperature = float(options.get("temperature") or 0.0)
    draws = options.get("do_sample")
    if not (temperature > 0 if draws is None else draws):
        return Sampler(temperature=0.0)
    return Sampler(temperature or 1.0, int(options.get("top_k") or 0), float(options.get("top_p") or 1.0))
