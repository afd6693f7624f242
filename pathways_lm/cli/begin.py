"""Where a run begins that goes on from another's parameters: `train.init_from`."""

import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey

from pathways_lm.checked import parse_patterns
from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import DataConfig, Experiment, TrainConfig
from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.errors import CheckpointError, ConfigError
from pathways_lm.models.model import Model, Params
from pathways_lm.models.patterns import check_patterns, fits

# Objectives that count their extra ids from the last.
_FROM_THE_LAST = ("span_corruption", "ul2")


class Beginning(NamedTuple):
    """What is taken of another run's checkpoint."""

    run: str
    step: int
    place: Any
    """Where its checkpoints lie."""
    vocabulary_fingerprint: str
    """Of the vocabulary it was trained with; empty where that is not known."""
    data: DataConfig
    taken: frozenset[str]
    """Paths of the parameters that are taken; the model's others are drawn."""
    left: tuple[str, ...]
    """Paths of those it has and the model does not take."""

    def told(self, model: Model) -> str:
        """For the console and the log."""
        drawn = len(_leaves(model.abstract)) - len(self.taken)
        said = f"begins from step {self.step} of '{self.run}'"
        if drawn:
            said += f", {drawn} of {len(_leaves(model.abstract))} parameters drawn anew"
        return said + (f"; not taken: {', '.join(self.left)}" if self.left else "")

    def check_vocabulary(self, data: DataConfig, model: Model, vocabulary: Vocabulary) -> None:
        """Raises ConfigError where ids would mean something else than they did. Without embeddings they may."""
        names = _leaves(model.variables, ("vocab",))
        if not self.taken & set(names):
            return
        cure = "or leave embedding and head out of train.init_parameters"
        if self.vocabulary_fingerprint not in ("", vocabulary.fingerprint):
            which = f"data.vocabulary='{data.vocabulary}'" if data.vocabulary else "that of this corpus"
            raise ConfigError(
                f"train.init_from='{self.run}' was trained with another vocabulary than {which} "
                f"({self.vocabulary_fingerprint[:12]}, not {vocabulary.fingerprint[:12]}); leave data.vocabulary empty "
                f"for its own, {cure}"
            )
        if not self.vocabulary_fingerprint and not data.vocabulary:
            raise ConfigError(
                f"train.init_from='{self.run}' has no vocabulary; name the file it was trained with in "
                f"data.vocabulary, {cure}"
            )
        mine, its = data.extra_ids, self.data.extra_ids
        if mine != its and {data.objective, self.data.objective} <= set(_FROM_THE_LAST):
            raise ConfigError(
                f"data.extra_ids={mine} gives spans other ids than in train.init_from='{self.run}'; use {its}, {cure}"
            )

    def params(self, model: Model, seed: int) -> Params:
        """The parameters to begin with, on the model's mesh; what is not taken is drawn from `seed`."""
        wanted = {path: leaf for path, leaf in _leaves(model.abstract).items() if path in self.taken}
        with closing(Store(self.place, readonly=True)) as store:
            found = _leaves(store.restore_part(self.step, "params", _nested(wanted)))
        if len(found) == len(_leaves(model.abstract)):
            return _nested(found)
        return _nested({**_leaves(model.initialise(seed)), **found})


def begin(experiment: Experiment, model: Model) -> Beginning:
    """Looks at the run that `train.init_from` names, without reading its arrays.

    Raises:
      CheckpointError: no run folder, no such checkpoint, a damaged one, one that cannot be read; or parameters that it
        lacks or has in another shape, all named at once.
      ConfigError: a pattern that fits no parameter.
    """
    try:
        return _begin(experiment.train, model)
    except OSError as error:
        raise CheckpointError(
            f"train.init_from='{experiment.train.init_from}' cannot be read: {error.strerror or error}"
        ) from None


def _begin(train: TrainConfig, model: Model) -> Beginning:
    folder = RunFolder(Path(train.init_from).expanduser())
    if not folder.config.is_file():
        raise CheckpointError(f"train.init_from='{train.init_from}' is not a run folder: it has no config.json")
    source = folder.experiment()
    place = folder.checkpoints_at(source)
    if not (place / "checkpoints").is_dir():
        raise CheckpointError(f"train.init_from='{train.init_from}' has no checkpoint yet")
    with closing(Store(place, readonly=True)) as store:
        step = _step(store, train.init_from, train.init_step)
        facts, held = store.facts(step), store.shapes(step, "params")
    wanted = {path: leaf.shape for path, leaf in _leaves(model.abstract).items()}
    patterns = parse_patterns("train.init_parameters", train.init_parameters)
    check_patterns("train.init_parameters", patterns, list(wanted))
    taken = frozenset(path for path in wanted if not patterns or any(fits(pattern, path) for pattern in patterns))
    problems = _problems({path: wanted[path] for path in taken}, held)
    if problems:
        raise CheckpointError(
            f"checkpoint {step} of train.init_from='{train.init_from}' does not fit the model: {'; '.join(problems)}; "
            "train.init_parameters can leave parameters out"
        )
    return Beginning(
        run=train.init_from,
        step=step,
        place=place,
        vocabulary_fingerprint=facts["vocabulary_fingerprint"],
        data=source.data,
        taken=taken,
        left=tuple(sorted(set(held) - taken)),
    )


def _step(store: Store, run: str, asked: int) -> int:
    """The checkpoint to begin from: the one asked for, or the newest whole one."""
    steps = store.steps()
    if asked and asked not in steps:
        have = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
        raise CheckpointError(f"train.init_step={asked}: no such checkpoint in train.init_from='{run}'; {have}")
    problems: list[str] = []
    step = store.newest(lambda _, problem: problems.append(problem), at_most=asked or None)
    if step is None:
        raise CheckpointError(f"train.init_from='{run}' has no checkpoint yet")
    if asked and step != asked:
        raise CheckpointError(f"train.init_step={asked}: {problems[0]}")
    for problem in problems:
        print(f"{problem}; beginning from step {step}", file=sys.stderr)
    return step


def _problems(wanted: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [f"missing: {path} {wanted[path]}" for path in sorted(wanted) if path not in held]
    wrong = [
        f"wrong shape: {path} is {held[path]}, not {wanted[path]}"
        for path in sorted(wanted)
        if path in held and held[path] != wanted[path]
    ]
    return missing + wrong


def _leaves(params: Any, dims: Iterable[str] = ()) -> dict[str, Any]:
    """Leaves by path, of variables only those that have one of the dimensions `dims`."""
    is_leaf = (lambda node: hasattr(node, "dims")) if dims else None
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)
    named = {"/".join(str(key.key) for key in path if isinstance(key, DictKey)): leaf for path, leaf in found}
    return {path: leaf for path, leaf in named.items() if not dims or set(dims) & set(leaf.dims)}


def _nested(leaves: Mapping[str, Any]) -> Params:
    nested: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = leaf
    return nested
