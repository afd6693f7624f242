"""A trained run, loaded to be used."""

import sys
from typing import NamedTuple

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import Experiment
from pathways_lm.configure import override
from pathways_lm.data.vocabulary import Vocabulary, load_vocabulary
from pathways_lm.errors import CheckpointError
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model, Params
from pathways_lm.sharding import check_fit, rules_of, whole_sequences

# One device serves a prompt best; more are asked for with --set mesh.tensor=4.
ONE_DEVICE = ("mesh.pod=1", "mesh.data=1", "mesh.expert=1", "mesh.stage=1", "mesh.context=1", "mesh.tensor=1")


class Trained(NamedTuple):
    """The newest checkpoint of a run, and what belongs to it."""

    experiment: Experiment
    model: Model
    params: Params
    vocabulary: Vocabulary
    step: int


def load_trained(run: str, overrides: list[str]) -> Trained:
    """Loads a run folder, by default onto one device.

    Raises CheckpointError for a folder without a run or a checkpoint, and for a vocabulary that is not the model's.
    """
    folder = RunFolder(run)
    experiment = override(folder.experiment(), [*ONE_DEVICE, *overrides])
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
    return Trained(experiment, model, items["params"], vocabulary, step)
