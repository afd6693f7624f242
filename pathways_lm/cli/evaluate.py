"""`pathways-lm evaluate`: a run's validation text, or files and tasks, scored."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.config import DataConfig
from pathways_lm.data.cache import prepare
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import make_objective
from pathways_lm.errors import CheckpointError, ConfigError, DataError
from pathways_lm.evaluate.contamination import GPT3, PALM, overlaps, training_texts
from pathways_lm.evaluate.few_shot import fill, prompts, read_template
from pathways_lm.evaluate.lambada import lambada
from pathways_lm.evaluate.perplexity import Perplexity
from pathways_lm.evaluate.ranking import rank, write
from pathways_lm.evaluate.records import documents, json_lines, passages
from pathways_lm.evaluate.texts import adjusted_perplexity, detokenized, likelihoods, perplexities
from pathways_lm.language_model import LanguageModel, load

Figures = Mapping[str, Any]
Measured = tuple[Figures, list[dict[str, Any]]]
"""Figures by name, and what was found of each example."""
Measure = Callable[[LanguageModel], Measured]

# Which flags belong to which; the first alone may be given.
_FLAGS = {
    "perplexity": ("stride", "wikitext", "overlap"),
    "lambada": ("truncate", "overlap"),
    "task": ("split", "limit", "num_tokens", "truncate"),
    "file": ("template", "shots", "shots_from", "seed", "limit", "num_tokens", "truncate", "overlap"),
}


def main(arguments: argparse.Namespace) -> int:
    """Prints figures. Of the validation text: nats per token and bits per byte, with general compressors beside them.

    What is to be evaluated is read before the run is loaded, and checked before anything is compiled.
    """
    mode = _mode(arguments)
    data = RunFolder(arguments.run).experiment().data
    modes = {"perplexity": _perplexity, "lambada": _lambada, "task": _task, "file": _file}
    measure = modes[mode](arguments) if mode else _held_out(arguments)
    out = None if arguments.out is None else _writable(arguments.out)
    prepare_devices(arguments, data.cache_dir)
    trained = load(arguments.run, arguments.overrides)
    with _progress() as bar:
        trained.scorer.report = bar
        figures, told = measure(trained)
    print(f"step {trained.step}")
    _print(figures) if mode else _print_held_out(figures)
    if out:
        found = {"run": str(arguments.run), "step": trained.step, "figures": figures, "examples": told}
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 0


def _mode(arguments: argparse.Namespace) -> str | None:
    """Which flag says what is evaluated. Raises ConfigError for two of them, and for a flag that is another's."""
    modes = [mode for mode in _FLAGS if getattr(arguments, mode) is not None]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]} are two evaluations; give one of them")
    mode = modes[0] if modes else None
    for flag in sorted({flag for flags in _FLAGS.values() for flag in flags}):
        given = getattr(arguments, flag) not in (None, False)
        owners = [f"--{owner}" for owner, flags in _FLAGS.items() if flag in flags]
        if given and (mode is None or flag not in _FLAGS[mode]):
            raise ConfigError(f"--{flag.replace('_', '-')} is for {' or '.join(owners)}")
    for flag, least in (("stride", 1), ("limit", 1), ("overlap", 1), ("num_tokens", 1), ("shots", 0), ("seed", 0)):
        value = getattr(arguments, flag)
        if value is not None and value < least:
            raise ConfigError(f"--{flag.replace('_', '-')} must be at least {least}, not {value}")
    return mode


def _perplexity(arguments: argparse.Namespace) -> Measure:
    texts = documents(arguments.perplexity)
    originals = [text for _, text in texts]
    scored = list(map(detokenized, originals)) if arguments.wikitext else originals

    def measure(trained: LanguageModel) -> Measured:
        found = likelihoods(trained, scored, originals, arguments.stride)
        told = [{"place": place, **each._asdict()} for (place, _), each in zip(texts, found, strict=True)]
        sizes = {name: sum(getattr(each, name) for each in found) for name in ("tokens", "words", "bytes")}
        adjusted = {"adjusted_perplexity": adjusted_perplexity(found, originals)} if arguments.wikitext else {}
        return {**perplexities(found), **adjusted, **sizes, **_overlap(arguments, trained, originals)}, told

    return measure


def _lambada(arguments: argparse.Namespace) -> Measure:
    texts = passages(arguments.lambada)

    def measure(trained: LanguageModel) -> Measured:
        figures = lambada(trained, texts, arguments.truncate)
        return {**figures, **_overlap(arguments, trained, [text for _, text in texts])}, []

    return measure


def _task(arguments: argparse.Namespace) -> Measure:
    data: DataConfig = RunFolder(arguments.run).experiment().data

    def measure(trained: LanguageModel) -> Measured:
        # Late: tensorflow takes seconds to import.
        from pathways_lm.evaluate.tasks import TaskEvaluator

        split = arguments.split or "validation"
        evaluator = TaskEvaluator(arguments.task, data, trained.vocabulary, split, arguments.limit)
        return evaluator(trained, arguments.num_tokens, arguments.truncate), []

    return measure


def _file(arguments: argparse.Namespace) -> Measure:
    if arguments.template is None:
        raise ConfigError("--file needs --template, which says how its records become questions")
    template = read_template(arguments.template)
    records = json_lines(arguments.file)
    questions = [fill(template, record) for record in records]
    pool = questions
    if arguments.shots_from is not None:
        pool = [fill(template, record) for record in json_lines(arguments.shots_from)]
    questions = questions[: arguments.limit]
    asked = prompts(template, questions, pool, arguments.shots or 0, arguments.seed or 0)

    def measure(trained: LanguageModel) -> Measured:
        if template.choices:
            if arguments.num_tokens is not None:
                raise ConfigError("--num-tokens is for templates without 'choices': with them nothing is written")
            figures, told = rank(trained, template, questions, asked, arguments.truncate)
        else:
            num_tokens = arguments.num_tokens or 32
            figures, told = write(trained, template, questions, asked, num_tokens, arguments.truncate)
        return {**figures, **_overlap(arguments, trained, [question.solved for question in questions])}, told

    return measure


def _overlap(arguments: argparse.Namespace, trained: LanguageModel, texts: Sequence[str]) -> Figures:
    """How many texts the run may have trained on, where --overlap asks for it, by GPT-3's measure and by PaLM's."""
    if arguments.overlap is None:
        return {}
    corpus = prepare(trained.experiment.data, trained.experiment.model.vocab_size)
    found = overlaps(texts, training_texts(corpus), arguments.overlap)
    measures = {"any n-gram": GPT3[1], "7 in 10 n-grams": PALM[1]}
    return {
        "seen in training": {name: sum(one.contaminated(share) for one in found) for name, share in measures.items()}
    }


def _held_out(arguments: argparse.Namespace) -> Measure:
    def measure(trained: LanguageModel) -> Measured:
        data = trained.experiment.data
        corpus = prepare(data, trained.experiment.model.vocab_size)
        if corpus.vocabulary.fingerprint != trained.vocabulary.fingerprint:
            raise CheckpointError(
                f"the corpus on this machine gives another vocabulary than '{arguments.run}' was trained with"
            )
        batches = Loader(corpus, data, make_objective(data, corpus.vocabulary)).validation(data.batch_size)
        scores = Perplexity(trained.model, trained.experiment.train.precision)(
            trained.params, batches, corpus.validation_bytes if data.objective == "causal" else None
        )
        return {**scores, "yardsticks": dict(corpus.yardsticks)}, []

    return measure


def _print_held_out(figures: Figures) -> None:
    """The model's bits per byte above those of general compressors."""
    print(f"{'loss':>10}  {figures['loss']:.4f} nats/token")
    if "bits_per_byte" in figures:
        for name, bits in {"model": figures["bits_per_byte"], **figures["yardsticks"]}.items():
            print(f"{name:>10}  {bits:.4f} bits/byte")


def _print(figures: Figures, before: str = "") -> None:
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        if isinstance(value, Mapping):
            print(name)
            _print(value, "  ")
        else:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"{before}{name:>{width}}  {shown}")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over what is scored, on a terminal, which leaves nothing behind."""
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda scored, windows: bar.update(task, completed=scored, total=windows)


def _writable(path: str) -> Path:
    """A path that can be written to. Raises DataError where it cannot."""
    place = Path(path).expanduser()
    try:
        place.open("a").close()
    except OSError as error:
        raise DataError(f"--out='{path}' cannot be written: {error.strerror}") from None
    return place
