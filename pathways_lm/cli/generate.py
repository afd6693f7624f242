"""`pathways-lm generate`: continues prompts."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.answers import Answers, read_prompts
from pathways_lm.cli.chat import Chat, talk
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.cli.flags import BEAMS, GOES_WITH, SAMPLING
from pathways_lm.cli.progress import progress
from pathways_lm.decode.beam import Beams
from pathways_lm.decode.constrained import Grammar
from pathways_lm.decode.contrastive import Contrastive
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError, DataError
from pathways_lm.language_model import LanguageModel, load


def main(arguments: argparse.Namespace) -> int:
    """Prints a single prompt and its continuation as it is written; several, one after the other at the end."""
    if arguments.num_tokens < 1:
        raise ConfigError(f"--num-tokens must be at least 1, not {arguments.num_tokens}")
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed must be from 0 to {2**32 - 1}, not {arguments.seed}")
    if bool(arguments.file or arguments.task) != bool(arguments.out):
        raise ConfigError("--file or --task goes with --out: prompts and where their answers go")
    sampler = Sampler(**{name: getattr(arguments, name) for name in SAMPLING})
    search = _searching(arguments)
    schema = _read(arguments.json_schema) if arguments.json_schema else ""
    key = "prompt" if arguments.key is None else arguments.key
    prompts = read_prompts(arguments.file, key) if arguments.file else arguments.prompt
    prepare_devices(arguments, RunFolder(arguments.run).experiment().data.cache_dir)
    model = load(arguments.run, arguments.overrides)
    grammar = model.grammar(arguments.regex, schema) if arguments.regex or schema else None
    if arguments.chat:
        _chat(model, sampler, arguments)
        return 0
    if arguments.task:
        from pathways_lm.evaluate.tasks import inputs_of  # late: tensorflow takes seconds

        split = "validation" if arguments.split is None else arguments.split
        prompts = inputs_of(arguments.task, model.experiment.data, model.vocabulary, split)
    if arguments.out:
        _answer(model, prompts, sampler, grammar, arguments)
        return 0
    if search is not None:
        _search(model, prompts, search, arguments)
        return 0
    if arguments.draft:
        _speculate(model, prompts, sampler, arguments)
        return 0
    if len(prompts) == 1 and not arguments.stop and grammar is None and arguments.best_of == 1:
        pieces = model.stream(prompts[0], sampler, arguments.num_tokens, arguments.seed, arguments.truncate)
        sys.stdout.write(prompts[0])
        for text in pieces:
            sys.stdout.write(text)
            sys.stdout.flush()
        print()
        return 0
    written = model.generate(
        prompts,
        sampler,
        arguments.num_tokens,
        arguments.stop,
        arguments.seed,
        grammar,
        arguments.best_of,
        arguments.truncate,
    )
    for prompt, one in zip(prompts, written, strict=True):
        print(prompt + one.text)
        print("-" * 80)
    _tell_unstopped([one.why for one in written], arguments)
    return 0


def _answer(
    model: LanguageModel, prompts: list[str], sampler: Sampler, grammar: Grammar | None, arguments: argparse.Namespace
) -> None:
    """Every prompt of the file or task that has no answer yet."""
    named = ("num_tokens", "stop", "seed", "truncate", "regex", "json_schema", *SAMPLING)
    settings = {"run": str(Path(arguments.run).resolve()), "step": model.step}
    settings |= {name: getattr(arguments, name) for name in named}
    whys = []
    with Answers(arguments.out, prompts, settings) as answers, progress("answers") as bar:
        bar(len(answers.done), len(prompts))
        for number, one in model.answers(
            prompts,
            sampler,
            arguments.num_tokens,
            arguments.stop,
            arguments.seed,
            grammar,
            arguments.truncate,
            skip=frozenset(answers.done),
        ):
            fields = {"text": one.text, "why": one.why, "tokens": one.tokens, "log_probs": one.log_probs}
            answers.write(number, fields)
            whys.append(one.why)
            bar(len(answers.done), len(prompts))
    _tell_unstopped(whys, arguments)
    print(f"{len(answers.done)} answers in {arguments.out}")


def _searching(arguments: argparse.Namespace) -> Beams | Contrastive | None:
    """What is searched with, in place of drawing. Raises ConfigError for flags that do not go together."""
    searches = [flag for flag in ("beams", "contrastive", "draft") if getattr(arguments, flag) is not None]
    if len(searches) > 1:
        raise ConfigError(f"--{searches[0]} and --{searches[1]} are two ways to write; give one of them")
    _check_flags(arguments, searches)
    if arguments.beams is not None:
        told = {field: getattr(arguments, flag) for flag, field in BEAMS.items()}
        return Beams(num_beams=arguments.beams, **{field: value for field, value in told.items() if value is not None})
    if arguments.contrastive is not None:
        return Contrastive(alpha=arguments.contrastive, top_k=arguments.top_k or 4)
    return None


def _check_flags(arguments: argparse.Namespace, searches: list[str]) -> None:
    """Raises ConfigError for a flag that what was asked for would not heed."""
    for flag, other in GOES_WITH.items():
        if getattr(arguments, flag) is not None and getattr(arguments, other) is None:
            raise ConfigError(f"--{_said(flag)} goes with --{other}")
    for flag in ("chat", "out", "stop", "regex", "json_schema", "truncate"):
        if searches and getattr(arguments, flag):
            raise ConfigError(f"--{_said(flag)} is not for --{searches[0]}")
    modes = searches or [flag for flag in ("chat", "out") if getattr(arguments, flag)]
    if modes and arguments.best_of != 1:
        raise ConfigError(f"--best-of is not for --{modes[0]}")
    for flag in ("stop", "regex", "json_schema"):
        if arguments.chat and getattr(arguments, flag):
            raise ConfigError(f"--{_said(flag)} is not for --chat")
    heeded = {"beams": (), "contrastive": ("top_k",)}
    for flag, usual in {**{name: usual for name, (usual, _) in SAMPLING.items()}, "seed": 0}.items():
        for search in heeded.keys() & searches:
            if getattr(arguments, flag) != usual and flag not in heeded[search]:
                raise ConfigError(f"--{_said(flag)} is not for --{search}, which draws nothing")


def _said(flag: str) -> str:
    return flag.replace("_", "-")


def _search(
    model: LanguageModel, prompts: list[str], search: Beams | Contrastive, arguments: argparse.Namespace
) -> None:
    if isinstance(search, Beams):
        found = model.beam(prompts, search, arguments.num_tokens)
    else:
        found = [[one] for one in model.contrastive(prompts, search, arguments.num_tokens)]
    for prompt, hypotheses in zip(prompts, found, strict=True):
        for one in hypotheses:
            print(prompt + one.text)
            print("-" * 80 if one.score is None else f"{'-' * 70} {one.score:.4f}")


def _speculate(model: LanguageModel, prompts: list[str], sampler: Sampler, arguments: argparse.Namespace) -> None:
    draft = load(arguments.draft, arguments.overrides)
    ahead = 4 if arguments.ahead is None else arguments.ahead
    written, a_step = model.ahead_of(draft, prompts, sampler, arguments.num_tokens, arguments.seed, ahead)
    for prompt, one in zip(prompts, written, strict=True):
        print(prompt + one.text)
        print("-" * 80)
    print(f"{a_step:.2f} tokens for each step of the large model", file=sys.stderr)


def _chat(model: LanguageModel, sampler: Sampler, arguments: argparse.Namespace) -> None:
    def fits(prompt: str) -> bool:
        ids = model.vocabulary.encode(prompt)
        return len(model.form.read(ids)) + arguments.num_tokens <= model.context

    def reply(prompt: str) -> Any:
        return model.stream(prompt, sampler, arguments.num_tokens, arguments.seed, truncate=True)

    print("type a line; the end of input ends it", file=sys.stderr)
    talk(Chat(reply, fits), sys.stdin)


def _tell_unstopped(whys: list[str], arguments: argparse.Namespace) -> None:
    unstopped = sum(why == "length" for why in whys)
    if arguments.stop and unstopped:
        told = (
            f"{unstopped} of {len(whys)} continuations did not come to a stop string in {arguments.num_tokens} tokens"
        )
        print(f"pathways-lm: {told}", file=sys.stderr)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
