"""Metrics of answers: those of `t5.evaluation.metrics`, by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Metric = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""From targets and predictions to figures by name."""


# The parameters' names are part of seqio's contract: it tells a metric's kind by them.
def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """The percentage of predictions that are their target."""
    return _t5().accuracy(targets, predictions)


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """sacrebleu's BLEU of all predictions, 0 to 100."""
    return _t5().bleu(targets, predictions)


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """ROUGE-1, -2 and -Lsum, 0 to 100."""
    return _t5().rouge(targets, predictions)


def edit_distance(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """Words to change, add or leave out, from a prediction to its target: their least, most, mean, median and sum."""
    return _t5().edit_distance(targets, predictions)


def _t5() -> Any:
    # Late: it takes seconds, and only evaluation needs it. tensorflow comes with it, and is not to speak up.
    from pathways_lm.data import quiet_tensorflow  # noqa: F401

    from t5.evaluation import metrics  # isort: skip

    return metrics


BY_NAME: Mapping[str, Metric] = {"accuracy": accuracy, "bleu": bleu, "rouge": rouge, "edit_distance": edit_distance}
