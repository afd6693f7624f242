"""What training does with the parameters at every validation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.config import Experiment
from pathways_lm.config.train import HIGHER_IS_BETTER
from pathways_lm.data.cache import Corpus
from pathways_lm.data.loader import Loader
from pathways_lm.data.questions import held_out
from pathways_lm.decode.form import form_of
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.errors import ConfigError
from pathways_lm.evaluate.answers import Answer, Answers, metrics_of
from pathways_lm.evaluate.perplexity import Perplexity
from pathways_lm.models.model import Model, Params
from pathways_lm.train.loop import Hooks, Sample
from pathways_lm.train.meter import Figures


def make_hooks(experiment: Experiment, model: Model, corpus: Corpus, loader: Loader) -> Hooks:
    """Perplexity of the whole validation text, answers to some of its pairs, and a sample.

    Raises ConfigError for a prompt that is too long, and for a figure that tells the best checkpoints and is none of
    the tasks'.
    """
    perplexity = Perplexity(model, experiment.train.precision, loader.mixture.tasks)
    batches = list(loader.validation(experiment.data.batch_size))
    causal = experiment.data.objective == "causal"
    answers = _answers(experiment, model, corpus) if experiment.train.evaluate_examples else None

    def validate(params: Params) -> Figures:
        figures = perplexity(params, batches, corpus.validation_bytes if causal else None)
        return figures if answers is None else _together(figures, answers(params))

    sample: Sample | None = None
    if answers is not None:
        sample = lambda params, rng, step: answers.samples  # noqa: E731
    elif model.config.shape == "decoder":
        sample = _sampler(experiment, model, corpus)
    return Hooks(validate, sample, dict(corpus.yardsticks) if causal else {})


def _together(scored: Figures, answered: Figures) -> Figures:
    """Figures of both, those of each task side by side."""
    both = {**scored, **answered}
    if "tasks" in answered:
        both["tasks"] = {task: {**scored["tasks"][task], **told} for task, told in answered["tasks"].items()}
    return both


def _answers(experiment: Experiment, model: Model, corpus: Corpus) -> Answers:
    by, metrics = experiment.train.checkpoints_best_by, metrics_of(tuple(corpus.counts))
    if experiment.train.checkpoints_best and by in HIGHER_IS_BETTER and by not in metrics:
        raise ConfigError(
            f"train.checkpoints_best_by={by!r} is no metric of {', '.join(corpus.counts)}: they have "
            f"{', '.join(sorted(metrics))}"
        )
    questions = held_out(corpus, experiment.data, experiment.train.evaluate_examples)
    longest = max(len(corpus.vocabulary.encode(targets)) for pairs in questions.values() for _, targets in pairs)
    # One more than any target has: what goes on so far is wrong, however it ends.
    return Answers(questions, answering(experiment, model, corpus, longest + 1))


def answering(experiment: Experiment, model: Model, corpus: Corpus, num_tokens: int) -> Answer:
    """Greedy answers of up to `num_tokens` tokens."""
    vocabulary = corpus.vocabulary
    generator = _generator(experiment, model, corpus)
    greedy, key = Sampler(temperature=0.0), jax.random.key(0)

    def answer(params: Params, prompts: Sequence[str]) -> list[str]:
        ids = [vocabulary.encode(prompt) for prompt in prompts]
        written = generator.write(params, ids, greedy, num_tokens, key)
        return [vocabulary.decode(each.tokens) for each in written]

    return answer


def _generator(experiment: Experiment, model: Model, corpus: Corpus) -> Generator:
    form = form_of(experiment.data, corpus.vocabulary.size, corpus.vocabulary.eod_id)
    # Parameters are others each time: they are not taken apart into layers.
    return Generator(model, form, experiment.data.sequence_length, listed=False)


def _sampler(experiment: Experiment, model: Model, corpus: Corpus) -> Sample:
    settings = experiment.sample
    prompt = corpus.vocabulary.encode(settings.prompt)
    generator = _generator(experiment, model, corpus)
    # Told now, not when all is compiled.
    generator.room(prompt)
    sampler = Sampler(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)

    def sample(params: Params, rng: Array, step: int) -> list[tuple[str, str]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(np.asarray(rng))), step)
        written = generator.write(params, [prompt], sampler, settings.num_tokens, key)
        return [(settings.prompt, corpus.vocabulary.decode(written[0].tokens))]

    return sample
