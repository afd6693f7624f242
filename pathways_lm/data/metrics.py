"""Metrics of answers: those of `t5.evaluation.metrics`, by name."""

from collections.abc import Callable, Mapping, Sequence

Metric = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""From targets and predictions to figures by name."""


# The parameters' names are part of seqio's contract: it tells a metric's kind by them.
def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """The percentage of predictions that are their target."""
    from t5.evaluation import metrics  # late: it takes seconds, and only evaluation needs it

    return metrics.accuracy(targets, predictions)


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """sacrebleu's BLEU of all predictions, 0 to 100."""
    from t5.evaluation import metrics

    return metrics.bleu(targets, predictions)


BY_NAME: Mapping[str, Metric] = {"accuracy": accuracy, "bleu": bleu}
