"""Held-out pairs answered while a run trains, and the answers scored by their task's metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pathways_lm.data.metrics import BY_NAME
from pathways_lm.data.pairs import METRICS
from pathways_lm.data.questions import Question
from pathways_lm.models.model import Params

Answer = Callable[[Params, Sequence[str]], list[str]]
"""From parameters and inputs to what the model writes, greedily, for each."""

_CHARTED = ("accuracy", "bleu")
"""What is followed over a run: one percentage each, the higher the better. `pathways-lm evaluate` tells all."""
_OTHERWISE = ("accuracy",)
"""Metrics of tasks that name none: files, and those of the t5 package."""


class Answers:
    """Asks the same questions at every validation.

    Args:
      questions: task -> its held-out pairs.
      answer: how a model is asked.
    """

    def __init__(self, questions: Mapping[str, Sequence[Question]], answer: Answer):
        self._questions, self._answer = questions, answer
        self.samples: list[tuple[str, str]] = []
        """Of each task the first question and the answer that was last given to it."""

    def __call__(self, params: Params) -> dict[str, Any]:
        """Each metric by its name, as the mean over the tasks that have it, and for several tasks that of each."""
        # All at once: tasks whose questions are few do not fill a batch.
        asked = [inputs for pairs in self._questions.values() for inputs, _ in pairs]
        answered = iter(self._answer(params, asked))
        tasks: dict[str, dict[str, float]] = {}
        self.samples = []
        for task, pairs in self._questions.items():
            predictions = [next(answered) for _ in pairs]
            tasks[task] = score(task, [targets for _, targets in pairs], predictions)
            self.samples.append((pairs[0][0], predictions[0]))
        names = {name for figures in tasks.values() for name in figures}
        told = {name: [figures[name] for figures in tasks.values() if name in figures] for name in sorted(names)}
        means = {name: sum(values) / len(values) for name, values in told.items()}
        return {**means, "tasks": tasks} if len(tasks) > 1 else means


def metrics_of(tasks: Sequence[str]) -> set[str]:
    """The names of the metrics that answers to the tasks are scored by."""
    return {metric for task in tasks for metric in METRICS.get(task, _OTHERWISE) if metric in _CHARTED}


def score(task: str, targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The figures of a task's metrics, 0 to 100."""
    figures: dict[str, float] = {}
    for metric in sorted(metrics_of((task,))):
        figures |= {name: float(value) for name, value in BY_NAME[metric](targets, predictions).items()}
    return figures
