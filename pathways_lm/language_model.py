"""A trained run, loaded to be used: `pathways_lm.load(run)`."""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np

from pathways_lm.checkpoint.run_folder import RunFolder, reading
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import Experiment
from pathways_lm.configure import override
from pathways_lm.data.vocabulary import Vocabulary, load_vocabulary
from pathways_lm.decode.beam import Beams, BeamSearch
from pathways_lm.decode.constrained import Grammar, Pieces
from pathways_lm.decode.contrastive import Contrastive, ContrastiveSearch
from pathways_lm.decode.form import Form, form_of
from pathways_lm.decode.generate import Generator, Stopped, Written
from pathways_lm.decode.sampling import Sampler
from pathways_lm.decode.speculative import Pair, Speculator
from pathways_lm.errors import CheckpointError, ConfigError, DataError
from pathways_lm.evaluate.records import encodable
from pathways_lm.evaluate.scoring import Scored, Scorer, Window, rolling
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model, Params
from pathways_lm.sharding import check_fit, rules_of, whole_sequences

# One device serves a prompt best; more are asked for with --set mesh.tensor=4.
ONE_DEVICE = ("mesh.pod=1", "mesh.data=1", "mesh.expert=1", "mesh.stage=1", "mesh.context=1", "mesh.tensor=1")


@dataclass(frozen=True)
class Continuation:
    """What was written after a prompt."""

    text: str
    tokens: list[int]
    """Without the end; with a stop string, up to the token that completes it, while `text` ends before it."""
    log_probs: list[float]
    """Of each of `tokens`, by the model itself, whatever was drawn from."""
    why: str
    """What ended it: `end`, `stop` or `length`."""
    score: float | None = None
    """What a beam search ranked it by."""


@dataclass(frozen=True)
class LanguageModel:
    """The newest checkpoint of a run, and what belongs to it."""

    experiment: Experiment
    model: Model
    params: Params
    vocabulary: Vocabulary
    step: int

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""
        return self.experiment.data.sequence_length

    @cached_property
    def form(self) -> Form:
        """How it is given a prompt."""
        return form_of(self.experiment.data, self.vocabulary.size, self.vocabulary.eod_id)

    @cached_property
    def generator(self) -> Generator:
        """What continues ids; programs that it has compiled stay with it."""
        return Generator(self.model, self.form, self.context)

    @cached_property
    def beam_search(self) -> BeamSearch:
        """What searches hypotheses, with the generator's weights."""
        return BeamSearch(self.generator)

    @cached_property
    def contrastive_search(self) -> ContrastiveSearch:
        """What searches contrastively, with the generator's weights."""
        return ContrastiveSearch(self.generator)

    def generate(
        self,
        prompts: Sequence[str],
        sampler: Sampler | None = None,
        num_tokens: int = 200,
        stop: Sequence[str] = (),
        seed: int = 0,
        grammar: Grammar | None = None,
        best_of: int = 1,
        truncate: bool = False,
    ) -> list[Continuation]:
        """Continues each prompt until the end, before one of the `stop` strings, or for `num_tokens`.

        Args:
          grammar: what the continuations must be like (`grammar`).
          best_of: write so many of each, and take the one whose tokens have the highest mean log-probability.
          truncate: leave out the beginning of a prompt that is too long.

        Raises:
          ConfigError: a prompt has no tokens, or leaves no room in the context.
        """
        if best_of < 1:
            raise ConfigError(f"best_of must be at least 1, not {best_of}")
        repeated = [prompt for prompt in prompts for _ in range(best_of)]
        written = dict(self.answers(repeated, sampler, num_tokens, stop, seed, grammar, truncate))
        groups = [[written[n * best_of + i] for i in range(best_of)] for n in range(len(prompts))]
        return [max(group, key=lambda one: float(np.mean(one.log_probs or [0]))) for group in groups]

    def answers(
        self,
        prompts: Sequence[str],
        sampler: Sampler | None = None,
        num_tokens: int = 200,
        stop: Sequence[str] = (),
        seed: int = 0,
        grammar: Grammar | None = None,
        truncate: bool = False,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Continuation]]:
        """As `generate`; yields each continuation with its prompt's number when it is done, in any order.

        Args:
          skip: numbers of prompts that are left out. The others are continued as they would be with them.
        """
        if any(not each for each in stop):
            raise ConfigError("a stop string is empty")
        ids = [self._read(prompt, n, truncate) for n, prompt in enumerate(prompts)]
        guides = [grammar.guide() for _ in ids] if grammar else None
        written = [Written(why="skipped" if number in skip else "") for number in range(len(ids))]
        key, sampler = jax.random.key(seed), sampler or Sampler()
        done = self.generator.finished(self.params, ids, sampler, num_tokens, key, written, self._stopped(stop), guides)
        for number in done:
            yield number, self._continuation(written[number], stop)

    def ahead_of(
        self,
        draft: "LanguageModel",
        prompts: Sequence[str],
        sampler: Sampler | None = None,
        num_tokens: int = 200,
        seed: int = 0,
        ahead: int = 4,
    ) -> tuple[list[Continuation], float]:
        """As `generate`, in distribution, with a `draft` that writes ahead; and how many tokens each step gave."""
        if draft.vocabulary.fingerprint != self.vocabulary.fingerprint:
            raise ConfigError("the draft was trained with another vocabulary")
        ids = [self._read(prompt, number, truncate=False) for number, prompt in enumerate(prompts)]
        speculator = Speculator(self.generator, draft.generator, ahead)
        params, key = Pair(self.params, draft.params), jax.random.key(seed)
        written, a_step = speculator.write(params, ids, sampler or Sampler(), num_tokens, key)
        return [self._continuation(one, ()) for one in written], a_step

    def grammar(self, regex: str = "", json_schema: str = "") -> Grammar:
        """What continuations must be like: a regular expression that they match, or a JSON schema."""
        vocabulary = self.vocabulary
        texts = [vocabulary.decode_bytes([token]) for token in range(vocabulary.size)]
        pieces = Pieces(texts, vocabulary.eod_id, lambda text: vocabulary.encode(text.decode("utf-8", "replace")))
        return Grammar(pieces, regex, json_schema)

    def _read(self, prompt: str, number: int, truncate: bool) -> list[int]:
        """Ids of a prompt that can be continued."""
        ids = self.vocabulary.encode(encodable(prompt, f"prompt {number + 1}"))
        if not ids:
            raise ConfigError(f"prompt {number + 1} is empty: give it at least one character")
        if truncate:
            around = len(self.form.read([]))
            ids = ids[-max(self.context - around - 1, 1) :]
        try:
            self.generator.room(ids)
        except ConfigError as error:
            raise ConfigError(f"{error} (prompt {number + 1}; --truncate leaves out the beginning)") from None
        return ids

    def stream(
        self,
        prompt: str,
        sampler: Sampler | None = None,
        num_tokens: int = 200,
        seed: int = 0,
        truncate: bool = False,
    ) -> Iterator[str]:
        """Continues one prompt; yields its text as it is written."""
        written = [Written()]
        key, sampler = jax.random.key(seed), sampler or Sampler()
        ids = self._read(prompt, 0, truncate)
        steps = self.generator.stream(self.params, [ids], sampler, num_tokens, key, 1, written)
        return self.vocabulary.stream(token for _, tokens, _ in steps for token in tokens)

    def beam(
        self, prompts: Sequence[str], beams: Beams | None = None, num_tokens: int = 200
    ) -> list[list[Continuation]]:
        """The `beams.num_return` continuations of each prompt that a beam search ranks highest, the best first.

        Raises ConfigError for a prompt that leaves no room in the context, and for more beams than ids.
        """
        ids = [self._read(prompt, number, truncate=False) for number, prompt in enumerate(prompts)]
        found = self.beam_search.search(self.params, ids, beams or Beams(), num_tokens)
        return [[replace(self._continuation(one, ()), score=one.score) for one in row] for row in found]

    def contrastive(
        self, prompts: Sequence[str], contrastive: Contrastive | None = None, num_tokens: int = 200
    ) -> list[Continuation]:
        """Continues each prompt by contrastive search, until the end or for `num_tokens`.

        Raises ConfigError for a prompt that leaves no room in the context, and for more candidates than ids.
        """
        ids = [self._read(prompt, number, truncate=False) for number, prompt in enumerate(prompts)]
        written = self.contrastive_search.write(self.params, ids, contrastive or Contrastive(), num_tokens)
        return [self._continuation(one, ()) for one in written]

    @cached_property
    def scorer(self) -> Scorer:
        """What scores ids; programs that it has compiled stay with it."""
        return Scorer(self.model, self.form, self.context, self.experiment.train.precision)

    def log_likelihoods(self, windows: Sequence[Window]) -> list[Scored]:
        """Of the tokens that each window says (`evaluate.scoring`)."""
        return self.scorer(self.params, windows)

    def score(self, text: str, stride: int | None = None) -> Scored:
        """Every token of a text of any length, each after as many before it as `evaluate.scoring.rolling` gives it.

        Raises DataError for an empty text, and a stride that is not possible.
        """
        windows = rolling(self.form, self.vocabulary.encode(text), self.context, stride)
        if not windows:
            raise DataError("there is no token to score")
        scored = self.log_likelihoods(windows)
        return Scored(*(np.concatenate(parts) for parts in zip(*scored, strict=True)))

    def _stopped(self, stop: Sequence[str]) -> Stopped | None:
        if not stop:
            return None

        def stopped(tokens: Sequence[int]) -> int | None:
            text = self.vocabulary.decode(tokens)
            if not any(each in text for each in stop):
                return None
            # The token that completes a stop string is the last that is kept.
            enough = (
                n for n in range(1, len(tokens) + 1) if any(s in self.vocabulary.decode(tokens[:n]) for s in stop)
            )
            return next(enough, len(tokens))

        return stopped

    def _continuation(self, written: Written, stop: Sequence[str]) -> Continuation:
        text = self.vocabulary.decode(written.tokens)
        if written.why == "stop":
            text = text[: min(text.find(each) for each in stop if each in text)]
        return Continuation(text, written.tokens, written.log_probs, written.why)


def load(run: str, overrides: Sequence[str] = ()) -> LanguageModel:
    """Loads a run folder, by default onto one device.

    Args:
      overrides: as of the command line, `mesh.tensor=4`.

    Raises CheckpointError for a folder without a run or a checkpoint, and for a vocabulary that is not the model's.
    """
    folder = RunFolder(run)
    experiment = override(folder.experiment(), [*ONE_DEVICE, *overrides])
    experiment = replace(experiment, data=reading(experiment, folder))
    # What is asked of a trained run is of any length.
    rules = whole_sequences(rules_of(experiment.mesh, make_mesh(experiment.mesh)))
    check_fit(experiment, rules)
    place = folder.checkpoints_at(experiment)
    if not (place / "checkpoints").is_dir():
        raise CheckpointError(f"run folder '{folder.path}' has no checkpoint yet")
    vocabulary = load_vocabulary(str(folder.vocabulary), experiment.model.vocab_size - experiment.data.extra_ids)
    model = Model(experiment.model, rules)
    store = Store(place, readonly=True)
    restored = store.restore({"params": model.abstract}, lambda step, problem: print(problem, file=sys.stderr))
    store.close()
    if restored is None:
        raise CheckpointError(f"run folder '{folder.path}' has no checkpoint yet")
    step, items, facts = restored
    if facts["vocabulary_fingerprint"] != vocabulary.fingerprint:
        raise CheckpointError(
            f"'{folder.vocabulary}' is not the vocabulary that checkpoint {step} was trained with "
            f"({vocabulary.fingerprint[:12]}, not {facts['vocabulary_fingerprint'][:12]})"
        )
    return LanguageModel(experiment, model, items["params"], vocabulary, step)
