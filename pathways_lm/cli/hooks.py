"""What training does with the parameters at every validation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathways_lm.config import Experiment
from pathways_lm.data.cache import Corpus
from pathways_lm.data.loader import Loader
from pathways_lm.decode.form import form_of
from pathways_lm.decode.generate import Generator
from pathways_lm.decode.sampling import Sampler
from pathways_lm.evaluate.perplexity import Perplexity
from pathways_lm.models.model import Model, Params
from pathways_lm.train.loop import Hooks, Sample
from pathways_lm.train.meter import Figures


def make_hooks(experiment: Experiment, model: Model, corpus: Corpus, loader: Loader) -> Hooks:
    """Perplexity of the whole validation text, and a sample. Raises ConfigError for a prompt that is too long."""
    perplexity = Perplexity(model, experiment.train.precision, loader.mixture.tasks)
    held_out = list(loader.validation(experiment.data.batch_size))
    causal = experiment.data.objective == "causal"

    def validate(params: Params) -> Figures:
        return perplexity(params, held_out, corpus.validation_bytes if causal else None)

    sample = _sampler(experiment, model, corpus) if model.config.shape == "decoder" else None
    return Hooks(validate, sample, dict(corpus.yardsticks) if causal else {})


def _sampler(experiment: Experiment, model: Model, corpus: Corpus) -> Sample:
    settings = experiment.sample
    prompt = corpus.vocabulary.encode(settings.prompt)
    vocabulary = corpus.vocabulary
    form = form_of(experiment.data, vocabulary.size, vocabulary.eod_id)
    # Parameters are others each time: they are not taken apart into layers.
    generator = Generator(model, form, experiment.data.sequence_length, listed=False)
    # Told now, not when all is compiled.
    generator.room(prompt)
    sampler = Sampler(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)

    def sample(params: Params, rng: Array, step: int) -> tuple[str, str]:
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(np.asarray(rng))), step)
        written = generator.write(params, [prompt], sampler, settings.num_tokens, key)
        return settings.prompt, vocabulary.decode(written[0].tokens)

    return sample
