"""Tasks of seqio with their own metrics: this project's pairs, and those of the t5 package.

seqio's Evaluator prepares the examples and calls the metrics; what it evaluates writes the answers.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pathways_lm.config import DataConfig
from pathways_lm.data import pairs, sources, t5_tasks
from pathways_lm.data.examples import VALIDATION
from pathways_lm.data.quiet_tensorflow import seqio, tf
from pathways_lm.data.tasks import INPUTS, TARGETS, SeqioVocabulary, register
from pathways_lm.data.vocabulary import PAD_ID, Vocabulary
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError, DataError, nearest
from pathways_lm.evaluate.continuations import check_room, fit_prompts
from pathways_lm.evaluate.scoring import after
from pathways_lm.evaluate.trained import Trained

_OURS: Mapping[str, Sequence[str]] = {
    **{name: (name,) for name in pairs.TASKS},
    **{name: members for name, members in sources.MIXTURES.items() if set(members) <= set(pairs.TASKS)},
}
Examples = list[tuple[int, dict[str, Any]]]


class AsTheyAre(seqio.PassThroughFeatureConverter):
    """Examples as a task yields them: what is evaluated takes their texts."""

    # The base class leaves both to its constructor, which this one does not call.
    TASK_FEATURES: Mapping[str, Any] = {}
    pack = False


class TaskEvaluator:
    """The examples of a task or mixture, ready to be evaluated any number of times.

    Args:
      name: a task or mixture of pairs of docs/tasks.md, or one of the t5 package whose data is on this machine.
      data: of the run: where data sets lie, and which share of examples is kept for validation.
      num_examples: of each task, the first so many; None takes all.

    Raises ConfigError for an unknown name, DataError where there is no data, split or metric.
    """

    def __init__(
        self,
        name: str,
        data: DataConfig,
        vocabulary: Vocabulary,
        split: str = VALIDATION,
        num_examples: int | None = None,
    ):
        self._evaluators: list[seqio.Evaluator] = []
        with _registered(name, data, vocabulary) as tasks:
            for task in tasks:
                if split not in task.splits:
                    raise DataError(f"task '{task.name}' has no split '{split}', only {', '.join(sorted(task.splits))}")
                _check_metrics(task)
                self._evaluators.append(
                    seqio.Evaluator(
                        task.name, AsTheyAre(), split, num_examples=num_examples, async_compute_metrics=False
                    )
                )

    def __call__(self, trained: Trained, num_tokens: int | None = None, cut: bool = False) -> dict[str, dict[str, Any]]:
        """Task -> metric -> value, of greedily written answers.

        Args:
          num_tokens: most that are written; None is the length of the longest right answer, as T5 has it.
          cut: leave out the left of inputs that are too long for the context.

        Raises DataError, before anything is compiled, for inputs that are too long.
        """
        found = {}
        for evaluator in self._evaluators:
            (task,) = evaluator.eval_tasks
            with _seeded():
                metrics, _ = evaluator.evaluate(
                    compute_metrics=True,
                    predict_fn=lambda dataset, *_: _written(trained, _examples(dataset), num_tokens, cut),
                    score_fn=lambda dataset, *_: _scores(trained, _examples(dataset), cut),
                )
            found[task.name] = metrics.result()[task.name]
        return found


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """What draws from numpy's global state, as ROUGE's resampling does, draws the same each time."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


@contextlib.contextmanager
def _registered(name: str, data: DataConfig, vocabulary: Vocabulary) -> Iterator[list[seqio.Task]]:
    """The tasks of a name in seqio's registry with this vocabulary, until the end of the block.

    The registry has the t5 package's tasks under the same names, which are put back.
    """
    if name in _OURS:
        splits = sources.read(replace(data, mixture=name, files="", cache="", objective="text_to_text"))
        register(splits, vocabulary)
        yield [seqio.TaskRegistry.get(task) for task in splits]
        return
    if name in sources.DOCUMENTS or name in sources.MIXTURES:
        raise DataError(
            f"task '{name}' has documents and no metrics; tasks of pairs have: {', '.join(pairs.TASKS)}, "
            "and those of the t5 package"
        )
    names = t5_tasks.names()
    if name not in names:
        raise ConfigError(f"there is no task '{name}'{_hint(name, names)}")
    tasks = [_with_vocabulary(task, vocabulary) for task in t5_tasks.ready(name, data.datasets_dir)]
    before = [seqio.TaskRegistry.get(task.name) for task in tasks]
    try:
        _put(tasks)
        yield tasks
    finally:
        _put(before)


def _put(tasks: Sequence[seqio.Task]) -> None:
    for task in tasks:
        seqio.TaskRegistry.remove(task.name)
        seqio.TaskRegistry.add_provider(task.name, task)


def _hint(name: str, names: frozenset[str]) -> str:
    hint = nearest(name, [*_OURS, *names])
    return hint if not hint.startswith("; known") else f"{nearest(name, _OURS)}, and those of the t5 package"


def _with_vocabulary(task: seqio.Task, vocabulary: Vocabulary) -> seqio.Task:
    """A task of the t5 package, its texts in our tokens. What comes after its own tokenizing is left out: it trims."""
    preprocessors = list(task.preprocessors)
    if seqio.preprocessors.tokenize in preprocessors:
        preprocessors = preprocessors[: preprocessors.index(seqio.preprocessors.tokenize)]
    feature = seqio.Feature(SeqioVocabulary(vocabulary), dtype=tf.int32)
    return task.replace(
        preprocessors=[*preprocessors, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=dict.fromkeys(task.output_features, feature),
    )


def _check_metrics(task: seqio.Task) -> None:
    """Raises DataError where a task has none, or one that asks for what is not given here."""
    if not task.metric_objs:
        raise DataError(f"task '{task.name}' has no metrics")
    given = (seqio.metrics.ModelOutputType.PREDICTION, seqio.metrics.ModelOutputType.SCORE)
    for metric in task.metric_objs:
        if metric.model_output_type not in given:
            raise DataError(
                f"task '{task.name}' has a metric that needs '{metric.model_output_type.name.lower()}', and what is "
                "given here are predictions and scores"
            )
    if not {INPUTS, TARGETS} <= set(task.output_features):
        raise DataError(f"task '{task.name}' has no inputs, which its metrics need")


def _examples(dataset: tf.data.Dataset) -> Examples:
    return [(int(number), example) for number, example in dataset.as_numpy_iterator()]


def _text(example: Mapping[str, Any], feature: str) -> str:
    """As it was before it was tokenized."""
    return example[f"{feature}_pretokenized"].decode()


def _written(trained: Trained, examples: Examples, num_tokens: int | None, cut: bool) -> list[tuple[int, np.ndarray]]:
    """The tokens written for each example, filled up to the longest: seqio makes one array of them."""
    room = num_tokens or max(len(example[TARGETS]) for _, example in examples)
    prompts = [_text(example, INPUTS) for _, example in examples]
    prompts = fit_prompts(trained, prompts, _places(examples), room, trained.context, cut)
    written = [found.tokens for found in trained.generate(prompts, Sampler(temperature=0.0), room, (), 0)]
    width = max(1, *map(len, written))
    rows = [np.array([*tokens, *[PAD_ID] * (width - len(tokens))], np.int32) for tokens in written]
    return [(number, row) for (number, _), row in zip(examples, rows, strict=True)]


def _scores(trained: Trained, examples: Examples, cut: bool) -> list[tuple[int, float]]:
    """The log-likelihood of each example's targets after its inputs."""
    encode = trained.vocabulary.encode
    windows = [
        after(trained.form, encode(_text(example, INPUTS)), encode(_text(example, TARGETS))) for _, example in examples
    ]
    scored = trained.log_likelihoods(check_room(trained.form, windows, _places(examples), trained.context, cut))
    return [(number, found.total) for (number, _), found in zip(examples, scored, strict=True)]


def _places(examples: Examples) -> list[str]:
    return [f"example {number}" for number, _ in examples]
